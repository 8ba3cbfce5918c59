"""What lies in a folder before a run begins there, and who else is in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import vblora_lab
from vblora_lab.errors import SessionError
from vblora_lab.runs import Result, Runs, Trace
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.folder_lock import FolderLock
from vblora_lab.runs.layout import LOCK
from vblora_lab.runs.manifest import MANIFEST, write_manifest

SETTINGS = {"seed": 3}


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def begun(path):
    """The folder of a run that has begun and ended."""
    folder = RunFolder(path)
    folder.check(SETTINGS, resume=False)
    folder.claim(SETTINGS, resume=False)
    folder.open(SETTINGS)
    folder.give_back()
    return folder


# --- what is in the way


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name",
    ["adapter/notes.txt", "run.trace", "rates.json", "result.json", "checkpoint-3/notes.txt"],
)
def test_what_no_run_wrote_is_in_the_way_and_stays(tmp_path, name, resume):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(SessionError, match=rf"holds {name.split('/')[0]}, but no run\.json"):
        RunFolder(tmp_path).check(SETTINGS, resume)
    assert tree(tmp_path) == {name: "mine"}


def test_what_lies_aside_is_in_the_way_too(tmp_path):
    (tmp_path / ".aside").mkdir()
    (tmp_path / ".aside" / "notes.txt").write_text("mine")
    with pytest.raises(SessionError, match=r"\.aside' holds notes\.txt, and a run would delete it"):
        RunFolder(tmp_path).check(SETTINGS, resume=False)
    assert tree(tmp_path) == {".aside/notes.txt": "mine"}


def test_other_files_are_in_nobody_s_way(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-notes").write_text("mine")
    begun(tmp_path)
    assert tree(tmp_path)["notes.txt"] == tree(tmp_path)["checkpoint-notes"] == "mine"


@pytest.mark.parametrize("left", [[], ["run.json"]])
def test_what_a_process_leaves_that_is_killed_at_once_is_in_nobody_s_way(tmp_path, left):
    (tmp_path / ".aside").mkdir()
    (tmp_path / LOCK).write_text("")
    for name in left:
        (tmp_path / ".aside" / name).write_text("{")
    begun(tmp_path).check(SETTINGS, resume=True)


# --- links and pipes

NAMES = ["run.json", "run.trace", "rates.json", "result.json", LOCK, "adapter", ".aside"]
NAMES += ["checkpoint-12"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "link to nothing", "pipe"])
def test_links_and_pipes_are_refused(tmp_path, name, kind):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    begun(tmp_path / "run")
    place = tmp_path / "run" / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs named pipes")
        os.mkfifo(place)
    else:
        targets = {"file": elsewhere / "file", "folder": elsewhere, "nothing": tmp_path / "none"}
        place.symlink_to(targets[kind.rpartition(" ")[2]])
    for resume in (False, True):
        with pytest.raises(SessionError, match=rf"{name}' is a (link|pipe), where a run has a"):
            RunFolder(tmp_path / "run").check(SETTINGS, resume)
    assert tree(elsewhere) == {"file": "mine"} and not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_where_a_file_belongs_is_refused_and_the_other_way_round(tmp_path, name):
    if name in ("adapter", ".aside", "checkpoint-12"):
        (tmp_path / name).write_text("mine")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(SessionError, match=rf"{name}' is (a folder, where .*file|no folder)"):
        RunFolder(tmp_path).check(SETTINGS, resume=False)


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    begun(tmp_path / "here")
    assert json.loads((tmp_path / "there" / "run.json").read_text()) == SETTINGS


def test_nothing_is_written_through_a_link_aside(tmp_path):
    """Exports write into a folder without a look at what else is there."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".aside").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"\.aside is a link"), RunFolder(tmp_path).writing("a.txt"):
        raise AssertionError("there is nowhere to write")
    assert not list((tmp_path / "elsewhere").iterdir())


# --- what others laid into a run's own folders


def write(folder, name, files):
    with folder.writing(name) as aside:
        aside.mkdir()
        for file, text in files.items():
            (aside / file).write_text(text)
        folder.take_along(name)


def test_what_lies_in_an_adapter_is_taken_along(tmp_path):
    folder = begun(tmp_path)
    write(folder, "adapter", {"weights": "old", "config": "old"})
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    (tmp_path / "adapter" / "plots").mkdir()
    (tmp_path / "adapter" / "plots" / "a.txt").write_text("mine")
    (tmp_path / "adapter" / "link").symlink_to("nowhere")
    write(folder, "adapter", {"weights": "new", "config": "new"})
    assert tree(tmp_path / "adapter") == {
        "weights": "new", "config": "new", "notes.txt": "mine", "plots/a.txt": "mine"
    }  # fmt: skip
    assert os.readlink(tmp_path / "adapter" / "link") == "nowhere"


def test_what_a_killed_process_had_moved_aside_comes_back(tmp_path, monkeypatch):
    folder = begun(tmp_path)
    write(folder, "adapter", {"weights": "old", "notes.txt": "mine"})

    class Killed(BaseException):
        pass

    def die(*_):
        monkeypatch.setattr(Path, "rename", die)  # nothing is moved back any more
        raise Killed

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(Killed):
        write(folder, "adapter", {"weights": "new"})
    monkeypatch.undo()
    assert not (tmp_path / "adapter").exists()
    RunFolder(tmp_path).open(SETTINGS)
    assert tree(tmp_path / "adapter") == {"weights": "old", "notes.txt": "mine"}
    assert not list((tmp_path / ".aside").iterdir())


@pytest.mark.parametrize("name", ["notes.txt", "plots/a.txt"])
def test_a_checkpoint_with_something_in_it_stays(tmp_path, name):
    folder = begun(tmp_path)
    for number in (1, 2):
        checkpoint = tmp_path / f"checkpoint-{number}"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text("ours")
        write_manifest(checkpoint)
    (tmp_path / "checkpoint-1" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "checkpoint-1" / name).write_text("mine")
    for number in (1, 2):
        folder.remove(f"checkpoint-{number}")
    assert tree(tmp_path / "checkpoint-1").keys() == {"weights", name, MANIFEST}
    assert not (tmp_path / "checkpoint-2").exists()


# --- the lock


def test_one_at_a_time_has_the_folder(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.check(SETTINGS, resume=True)
    second.check(SETTINGS, resume=True)
    first.claim(SETTINGS, resume=True)
    for refused in (second.check, second.claim, RunFolder(tmp_path).check):
        with pytest.raises(SessionError, match=r"another process.* trains into .*now") as error:
            refused(SETTINGS, resume=True)
        assert repr(str(tmp_path)) in str(error.value)
    first.give_back()
    second.claim(SETTINGS, resume=True)
    second.give_back()


def test_the_folder_may_have_another_name_for_the_second(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    folder = RunFolder(tmp_path / "there")
    folder.check(SETTINGS, resume=False)
    folder.claim(SETTINGS, resume=False)
    with pytest.raises(SessionError, match="trains into"):
        RunFolder(tmp_path / "here").check(SETTINGS, resume=False)
    folder.give_back()


HOLDS_THE_LOCK = """
import sys
from pathlib import Path
from vblora_lab.runs.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_killed_leaves_no_lock(tmp_path):
    home = Path(vblora_lab.__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(SessionError, match=r"another process.* trains into"):
            RunFolder(tmp_path).check(SETTINGS, resume=False)
    finally:
        child.kill()
        child.communicate()
    assert (tmp_path / LOCK).exists()
    begun(tmp_path)


def test_a_run_that_went_on_meanwhile_is_not_gone_back_in(tmp_path):
    begun(tmp_path)
    folder = RunFolder(tmp_path)
    folder.check(SETTINGS, resume=True)
    (tmp_path / "checkpoint-3").mkdir()
    for _ in range(2):
        with pytest.raises(SessionError, match="has gone on since this session was made"):
            folder.claim(SETTINGS, resume=True)
    RunFolder(tmp_path).check(SETTINGS, resume=True)  # which the lock would forbid


def test_a_folder_that_can_t_be_locked_is_warned_of(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("no locks available")

    monkeypatch.setattr(FolderLock, "acquire", fail)
    folder = RunFolder(tmp_path)
    folder.check(SETTINGS, resume=False)
    folder.claim(SETTINGS, resume=False)
    with pytest.warns(UserWarning, match=r"can't be locked.*no locks available"):
        folder.open(SETTINGS)
    assert json.loads((tmp_path / "run.json").read_text()) == SETTINGS


# --- interrupts


def interrupted_at(number, act):
    """Call a function and raise KeyboardInterrupt in the line of that number in our files.

    Returns whether there were that many.
    """
    rooms = str(Path(vblora_lab.__file__).parent)
    lines = 0

    def trace(frame, what, _):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(rooms):
            return None
        if what == "line":
            lines += 1
            if lines == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.slow
def test_an_interrupt_in_any_line_leaves_a_folder_that_can_be_gone_on_with(tmp_path):
    number, ended = 0, False
    while not ended:
        number += 1
        path = tmp_path / str(number)
        begun(path)
        write(RunFolder(path), "adapter", {"weights": "old"})
        (path / "adapter" / "notes.txt").write_text("mine")
        (path / "notes.txt").write_text("mine")

        def go_on(folder):
            folder.check(SETTINGS, resume=True)
            folder.claim(SETTINGS, resume=True)
            folder.open(SETTINGS)
            write(folder, "adapter", {"weights": "new"})
            folder.give_back()

        ended = not interrupted_at(number, lambda path=path: go_on(RunFolder(path)))
        adapter = tree(path / "adapter")
        assert adapter in ({"weights": w, "notes.txt": "mine"} for w in ("old", "new")), number
        assert (path / "notes.txt").read_text() == "mine"
        go_on(RunFolder(path))
        assert tree(path / "adapter") == {"weights": "new", "notes.txt": "mine"}, number
        assert not list((path / ".aside").iterdir())
    assert number > 100


def ended_session(text="weights"):
    def save_pretrained(folder):
        Path(folder).mkdir()
        (Path(folder) / "weights").write_text(text)

    model = SimpleNamespace(save_pretrained=save_pretrained)
    return SimpleNamespace(status="completed", settings=SETTINGS, trace=Trace(), model=model)


@pytest.mark.slow
def test_an_interrupt_in_any_line_keeps_a_run_or_keeps_none(tmp_path):
    number, ended = 0, False
    while not ended:
        number += 1
        runs = Runs(tmp_path / str(number))
        ended = not interrupted_at(
            number, lambda runs=runs: runs.keep("first", ended_session(), Result(1, 2, loss=0.5))
        )
        if not (runs.folder / "first").exists():
            assert list(runs) == []
            runs.keep("first", ended_session())
        assert runs["first"].settings == SETTINGS
        assert tree(runs["first"].adapter) == {"weights": "weights"}
    assert number > 100


@pytest.mark.parametrize("name", ["notes.txt", "adapter/notes.txt"])
def test_a_run_is_not_kept_over_what_is_there(tmp_path, name):
    file = tmp_path / "first" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(SessionError, match=r"is not empty|but no run\.json"):
        Runs(tmp_path).keep("first", ended_session())
    assert tree(tmp_path) == {f"first/{name}": "mine"}


def test_scratch_of_a_killed_process_is_no_run(tmp_path):
    runs = Runs(tmp_path)
    runs.keep("first", ended_session())
    shutil.copytree(tmp_path / "first", tmp_path / ".first.0123.new")
    assert list(runs) == ["first"]
