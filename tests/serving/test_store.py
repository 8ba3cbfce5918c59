"""The store: what was added comes back whole, under its name, whoever writes or dies meanwhile."""

import json
import os
import shutil
import signal
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_close
from tests.serving.conftest import USERS, with_random_logits
from vblora_lab import cli
from vblora_lab.convert.export import export_lora
from vblora_lab.errors import CheckpointError, ConfigError, StoreError, UnknownAdapterError
from vblora_lab.serving import store as store_module
from vblora_lab.serving.store import AdapterStore
from vblora_lab.serving.store_files import ADAPTERS, BANKS, NEW
from vblora_lab.tuner.banks import fingerprint
from vblora_lab.tuner.formats import BANK_KEY

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


on_posix = pytest.mark.skipif(
    os.name == "nt", reason="forks, or changes and deletes files that are mapped"
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, adapters):
    store = AdapterStore(tmp_path_factory.mktemp("stored") / "store")
    store.add(adapters / "first", "first")
    for name in USERS:
        store.add(adapters / name, name)
    store.close()
    return store.path


@pytest.fixture
def store(tmp_path, stored):
    """A store with five adapters that share a bank."""
    return AdapterStore(shutil.copytree(stored, tmp_path / "store"), create=False)


def folders(store) -> dict[str, set]:
    """What lies in a store's folders."""
    return {kind: {p.name for p in (store.path / kind).glob("*/*")} for kind in (ADAPTERS, BANKS)}


def assert_nothing_is_left_over(store) -> None:
    """All folders are those of adapters in the index, and no scratch or mark is there."""
    if os.name == "nt":
        return  # nobody can delete what this process has mapped
    assert folders(store) == {
        ADAPTERS: {adapter.digest for adapter in store.adapters()},
        BANKS: {adapter.bank for adapter in store.adapters()},
    }
    assert list((store.path / NEW).iterdir()) == []


def same(store, name, folder) -> bool:
    """Whether an adapter of a store is the one in a folder, number for number."""
    stored, wanted = store.read(name).tensors, load_file(folder / WEIGHTS)
    wanted.setdefault(BANK_KEY, stored[BANK_KEY])
    return stored.keys() == wanted.keys() and all(
        torch.equal(stored[key], wanted[key]) for key in wanted
    )


# --- what comes back


def test_an_adapter_comes_back_as_it_was_on_a_model_and_as_lora(store, adapters, tmp_path):
    case = CASES["opt"]
    base = lab.from_pretrained(case.base(), adapters / "first", "first")
    for name in USERS[:2]:
        adapter = store[name]
        expected = lab.from_pretrained(case.base(), adapters / name, bank=adapters / "first")
        found = lab.from_pretrained(case.base(), adapter.folder, bank=adapter.bank_folder)
        assert torch.equal(case.output(found), case.output(expected))
        assert same(store, name, adapters / name)
        assert not torch.equal(case.output(found), case.output(base))
    store.export(tmp_path / "lora", [USERS[0]])
    lora = peft.PeftModel.from_pretrained(case.base(), tmp_path / "lora" / USERS[0])
    user = lab.from_pretrained(case.base(), adapters / USERS[0], bank=adapters / "first")
    assert_close(case.output(lora), case.output(user))


def test_a_bank_is_stored_once_and_goes_with_its_last_adapter(store, adapters):
    bank = load_file(adapters / "first" / WEIGHTS)[BANK_KEY]
    assert {adapter.bank for adapter in store.adapters()} == {fingerprint(bank)}
    assert store.read("user-0").tensors[BANK_KEY] is store.read("user-1").tensors[BANK_KEY]
    assert torch.equal(store.read("user-0").tensors[BANK_KEY], bank)
    store.add(adapters / "own", "own")
    assert len(folders(store)[BANKS]) == 2
    store.remove("own")
    assert folders(store)[BANKS] == {fingerprint(bank)}
    for name in ("first", *USERS):
        store.remove(name)
    assert len(store) == 0 and folders(store) == {ADAPTERS: set(), BANKS: set()}
    with pytest.raises(CheckpointError, match=r"stored without its bank .*Give bank="):
        store.add(adapters / "user-0", "user-0")
    store.add(adapters / "user-0", "user-0", bank=adapters / "first")
    assert same(store, "user-0", adapters / "user-0")
    assert_nothing_is_left_over(store)


def test_names_are_found_in_order_and_by_another_process_object(store, adapters):
    other = AdapterStore(store.path, create=False)
    assert list(other) == sorted(["first", *USERS]) and len(other) == 5
    assert "user-2" in other and "user-9" not in other and 7 not in other
    assert other["user-2"] == store["user-2"] and other.get("user-9") is None
    with pytest.raises(UnknownAdapterError, match=r"'user-02' is not in .*Did you mean 'user-"):
        other["user-02"]
    assert isinstance(UnknownAdapterError("x"), KeyError)
    size = sum(f.stat().st_size for f in other["user-2"].folder.iterdir())
    assert other["user-2"].bytes == size


def test_more_than_a_page_of_names(store, monkeypatch):
    pages = store._index.page
    monkeypatch.setattr(store._index, "page", lambda after="": pages(after, most=2))
    assert list(store) == sorted(["first", *USERS])


def test_an_adapter_of_a_model_is_stored_with_its_bank(store, tmp_path):
    case = CASES["opt"]
    model = case.ours()
    with_random_logits(model, "default")
    with pytest.raises(ConfigError, match="a model has the bank"):
        store.add(model, "trained", bank=store.bank(store["first"].bank))
    store.add(model, "trained")
    found = lab.from_pretrained(
        case.base(), store["trained"].folder, bank=store["trained"].bank_folder
    )
    assert torch.equal(case.output(found), case.output(model))


def test_what_is_replaced_is_the_new_one_and_the_old_is_gone(store, adapters):
    before = store["user-0"]
    with pytest.raises(StoreError, match=r"'user-0' is in the store .* already; give replace=True"):
        store.add(adapters / "own", "user-0")
    assert store["user-0"] == before
    store.add(adapters / "own", "user-0", replace=True)
    assert same(store, "user-0", adapters / "own") and not before.folder.exists()
    # The very same under two names is there once, until both are gone.
    store.add(adapters / "own", "twin")
    store.remove("user-0")
    assert same(store, "twin", adapters / "own")
    assert_nothing_is_left_over(store)


@on_posix
def test_a_reader_keeps_what_it_read_while_that_is_removed(store, adapters):
    tensors = store.read("user-0").tensors
    store.remove("user-0")
    wanted = load_file(adapters / "user-0" / WEIGHTS)
    assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


@on_posix
@pytest.mark.parametrize("kind", [ADAPTERS, BANKS])
def test_a_file_that_goes_while_it_is_opened_is_looked_for_again(
    store, adapters, monkeypatch, kind
):
    """safetensors opens it, and then PyTorch by its path: a writer may come between the two."""
    reader, mapped, gone = AdapterStore(store.path), torch.UntypedStorage.from_file, []

    def deleted_first(path, *rest, **options):
        if not gone and Path(path).parts[-4] == kind:
            gone.append(path)
            for name in list(store):  # the last to use the bank too
                store.remove(name)
            store.add(adapters / "own", "user-0")
            assert not Path(path).exists()
        return mapped(path, *rest, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", deleted_first)
    assert same(reader, "user-0", adapters / "own") and len(gone) == 1


# --- what is refused


def test_names_that_could_lead_out_or_get_lost(store, adapters):
    unfit = ["..", "../user", "a/b", "a\\b", "", "a.b", "a:b", "a\nb", "x" * 201, "keys", "\ud800"]
    for name in unfit:
        with pytest.raises(ConfigError, match="adapter_name="):
            store.add(adapters / "own", name)
        with pytest.raises(UnknownAdapterError):
            store[name]
    assert len(store) == 5
    assert_nothing_is_left_over(store)


def test_wrong_banks_and_damaged_folders_leave_the_store_as_it_was(store, adapters, tmp_path):
    def refused(error, message, folder, **how):
        with pytest.raises(error, match=message):
            store.add(folder, "new", **how)
        assert list(store) == sorted(["first", *USERS])
        assert_nothing_is_left_over(store)

    refused(
        CheckpointError, "bank: is another one than", adapters / "user-0", bank=adapters / "own"
    )
    refused(ConfigError, "has a bank of its own", adapters / "own", bank=adapters / "first")
    refused(CheckpointError, "there is no folder", tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    shutil.copytree(adapters / "user-0", damaged)
    weights = damaged / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(CheckpointError, "damaged or no safetensors", damaged)
    shutil.copytree(adapters / "user-0", tmp_path / "lora")
    (tmp_path / "lora" / CONFIG).write_text(json.dumps({"peft_type": "LORA"}))
    refused(CheckpointError, "no VB-LoRA adapter", tmp_path / "lora")


def test_an_error_while_writing_leaves_the_store_as_it_was(store, adapters, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.Writer, "put", full)
        with pytest.raises(OSError, match="No space"):
            store.add(adapters / "own", "user-0", replace=True)
    assert same(store, "user-0", adapters / "user-0")
    store.remove("user-3")  # the next writer deletes what the one before left
    assert_nothing_is_left_over(store)


def test_places_that_are_no_store(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(StoreError, match=r"holds other files \(notes.txt\)"):
        AdapterStore(tmp_path / "mine")
    with pytest.raises(StoreError, match="there is no store"):
        AdapterStore(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(StoreError, match="is a file"):
        AdapterStore(tmp_path / "mine" / "notes.txt")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "index.sqlite").write_text("no database" * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        AdapterStore(tmp_path / "text")
    (tmp_path / "other").mkdir()
    sqlite3.connect(tmp_path / "other" / "index.sqlite").execute(
        "CREATE TABLE t (x)"
    ).connection.close()
    with pytest.raises(StoreError, match="of another program"):
        AdapterStore(tmp_path / "other")
    later = AdapterStore(tmp_path / "later")
    with later._index.writing() as writer:
        writer._connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match=r"format 7, .* reads 1 at most"):
        AdapterStore(tmp_path / "later")


@on_posix
def test_damage_is_found_by_name_and_mended_by_adding_again(store, adapters):
    weights = store["user-1"].folder / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit, in a weight
    weights.write_bytes(content)
    (store["user-2"].folder / CONFIG).unlink()
    fresh = AdapterStore(store.path)
    with pytest.raises(CheckpointError, match=r"adapter 'user-1' .* is damaged: .*replace=True"):
        fresh.read("user-1")
    assert [line.split("'")[1] for line in fresh.check()] == ["user-1", "user-2"]
    for name in ("user-1", "user-2"):
        fresh.add(adapters / name, name, replace=True)
    assert fresh.check() == [] and same(fresh, "user-1", adapters / "user-1")
    bank = store["first"].bank_folder / WEIGHTS
    bank.write_bytes(bank.read_bytes()[:-4])
    fresh = AdapterStore(store.path)
    assert len(fresh.check()) == 5
    with pytest.raises(CheckpointError, match="damaged"):
        fresh.add(adapters / "user-0", "user-0", replace=True)  # it has no bank to mend it with
    fresh.add(adapters / "first", "first", replace=True)
    assert fresh.check() == []
    assert_nothing_is_left_over(fresh)


def test_strays_are_counted_and_deleted(store):
    stray = store.path / ADAPTERS / "ab" / "ab12"
    stray.mkdir(parents=True)
    (stray / WEIGHTS).write_text("x")
    assert store.clean() == 1 and store.clean() == 0
    assert_nothing_is_left_over(store)


# --- many at once, and sudden ends


@on_posix
def test_many_threads_read_whole_adapters_while_they_are_replaced(store, adapters):
    """A name means user-0's adapter or own, which differ in bank, format and all numbers."""
    done, wrong = threading.Event(), []
    versions = [load_file(adapters / name / WEIGHTS) for name in ("user-0", "own")]

    def read():
        rounds = 0
        while not done.is_set() or rounds == 0:
            tensors = dict(store.read("user-0").tensors)
            bank = tensors.pop(BANK_KEY)
            expected = next((v for v in versions if v.keys() - {BANK_KEY} == tensors.keys()), None)
            if expected is None or not all(torch.equal(tensors[k], expected[k]) for k in tensors):
                wrong.append(tensors.keys())
            if expected is not None and not torch.equal(bank, expected.get(BANK_KEY, shared)):
                wrong.append("bank")
            rounds += 1
        return rounds

    shared = store.bank(store["first"].bank)
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for name in ["own", "user-0"] * 5:
            store.add(adapters / name, "user-0", replace=True)
        done.set()
        assert min(reader.result() for reader in readers) > 1
    assert wrong == []
    assert_nothing_is_left_over(store)


@on_posix
def test_many_threads_and_forked_processes_add(store, adapters):
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            for i in range(5):
                store.add(adapters / "user-0", f"child-{number}-{i}")
            os._exit(0)
        children.append(child)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.add(adapters / USERS[i % 4], f"mine-{i}"), range(10)))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(store) == 25 and store.check() == []
    assert_nothing_is_left_over(store)


# Where files or the index change; what only reads can't leave anything half done.
CHANGING = {"_add", "_drop", "_put", "_deleted", "mark", "put_in_place", "sweep", "writing"}


def at_line(lines: int, do):
    """Something to do after so many lines of those that change a store, for `sys.settrace`."""
    left = lines

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_name not in CHANGING:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                do()
        return trace

    return trace


def killed(change, lines: int) -> bool:
    """Run a change in a process that is killed after so many lines of the store; whether it was."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        sys.settrace(at_line(lines, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        change()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def interrupted(change, lines: int) -> bool:
    """Run a change that the user stops after so many lines of the store; whether it was."""

    def stop():
        raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(at_line(lines, stop))
    try:
        change()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@on_posix
@pytest.mark.parametrize(("change", "step"), [("replace", 4), ("add", 6), ("remove", 3)])
def test_killed_at_any_line_it_is_as_before_or_after(
    stored, adapters, tmp_path, monkeypatch, change, step
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the machine stays on
    changes = {
        "replace": lambda store: store.add(adapters / "own", "user-0", replace=True),
        "add": lambda store: store.add(adapters / "own", "new"),
        "remove": lambda store: store.remove("user-0"),
    }
    ends, lines, was_killed = set(), 1, True
    while was_killed:
        store = AdapterStore(shutil.copytree(stored, tmp_path / str(lines)))
        before = {adapter.name: adapter.digest for adapter in store.adapters()}
        was_killed = killed(partial(changes[change], store), lines)
        lines += step
        after = {adapter.name: adapter.digest for adapter in store.adapters()}
        assert {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)} <= {
            "user-0",
            "new",
        }
        assert store.check() == []
        ends.add("before" if after == before else "after")
        store.remove("user-3")  # the next writer deletes what is left over
        assert_nothing_is_left_over(store)
        store.close()
    assert ends == {"before", "after"}


@on_posix
def test_interrupted_at_any_line_the_store_object_goes_on(stored, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    store = AdapterStore(shutil.copytree(stored, tmp_path / "store"))
    before = {adapter.name: adapter.digest for adapter in store.adapters()}
    ends, lines = set(), 2
    while interrupted(lambda: store.add(adapters / "own", "user-0", replace=True), lines):
        lines += 5
        after = {adapter.name: adapter.digest for adapter in store.adapters()}
        assert {name for name in before if before[name] != after.get(name)} <= {"user-0"}
        ends.add("before" if after == before else "after")
        assert store.check() == []
        store.add(adapters / "user-0", "user-0", replace=True)
        assert_nothing_is_left_over(store)
    assert "before" in ends


# --- as LoRA, and on the command line


def test_exports_go_on_where_they_ended(store, adapters, tmp_path):
    first = store.export(tmp_path, workers=2)
    assert first.written == sorted(["first", *USERS]) and not first.failed
    shutil.rmtree(tmp_path / "user-1")
    store.add(adapters / "own", "user-2", replace=True)
    weights = store["user-3"].folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "user-3")
    second = store.export(tmp_path)
    assert second.kept == ["first", "user-0"] and second.written == ["user-1", "user-2"]
    assert set(second.failed) == {"user-3"} and "damaged" in str(second)
    export_lora(adapters / "own", tmp_path / "alone")
    expected, found = (load_file(tmp_path / name / WEIGHTS) for name in ("alone", "user-2"))
    assert all(torch.equal(expected[key], found[key]) for key in expected.keys() | found.keys())
    with pytest.raises(UnknownAdapterError):
        store.export(tmp_path / "none", ["user-0", "user-7"])
    assert not (tmp_path / "none").exists()


def test_the_command_line(adapters, tmp_path, capsys):
    def run(*arguments, status=0):
        assert cli.main(["store", *map(str, arguments)]) == status
        return capsys.readouterr()

    place = tmp_path / "store"
    assert "there is no store" in run("list", place, status=2).err
    users = [adapters / name for name in USERS]
    run("add", place, *users, "--bank", adapters / "first")
    run("add", place, adapters / "own", "--name", "other")
    assert run("list", place, "--names").out.split() == ["other", *USERS]
    listed = run("list", place).out
    assert "5 adapters, " in listed and "in all, and 2 banks" in listed
    partly = run("add", place, adapters / "own", adapters / "user-0", status=1).out
    assert "user-0: 'user-0' is in the store" in partly and "1 adapter not added" in partly
    assert "Did you mean 'user-" in run("remove", place, "user-0", "user-l", status=2).err
    run("remove", place, "user-0", "own")
    assert run("check", place).out == "4 adapters, all as they were added\n"
    run("export", place, tmp_path / "lora", "user-1")
    assert (tmp_path / "lora" / "user-1" / WEIGHTS).is_file()
    (AdapterStore(place)["user-1"].folder / CONFIG).write_text("{}")
    assert "'user-1'" in run("check", place, "--clean", status=1).out
