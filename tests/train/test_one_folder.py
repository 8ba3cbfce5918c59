"""The folder of a run belongs to one session at a time, and to nothing else that lies in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vblora_lab
from vblora_lab.errors import ConfigError, SessionError
from vblora_lab.train import Finished, Stepped, Trace, TrainingSession, one_at_a_time

RUN = {"steps": 4, "batch_size": 2, "eval_examples": 0, "sample_count": 0, "save_every": 2}


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("resume", [False, True])
def test_an_adapter_that_no_run_wrote_is_refused_and_kept(base, task, config, tmp_path, resume):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(SessionError, match=r"holds adapter, but no run\.json"):
        TrainingSession(base, config, task, out=tmp_path, resume=resume, **RUN)
    assert tree(tmp_path) == {"adapter/notes.txt": b"mine"}


def test_what_came_while_a_session_waited_is_refused_and_kept(base, task, config, tmp_path):
    session = TrainingSession(base, config, task, out=tmp_path, **RUN)
    (tmp_path / "run.trace").write_text("mine")
    for begin in (session.run, session.start):
        with pytest.raises(SessionError, match=r"holds run\.trace, but no run\.json"):
            begin()
    assert tree(tmp_path) == {"run.trace": b"mine"}
    assert session.status == "ready"
    (tmp_path / "run.trace").unlink()
    assert session.run().reason == "completed", "a refusal is not its one run"


def test_a_note_in_an_adapter_outlives_the_next_part_of_the_run(base, task, config, tmp_path):
    first = TrainingSession(base, config, task, out=tmp_path, **RUN)
    first.add_listener(lambda e: isinstance(e, Stepped) and e.step == 2 and first.stop())
    first.run()
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-2" / "notes.txt").write_text("mine")
    TrainingSession(base, config, task, out=tmp_path, resume=True, keep=1, **RUN).run()
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() != before
    assert (tmp_path / "checkpoint-2" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "checkpoint-4" / "optimizer.pt").exists()


def test_of_two_sessions_of_one_process_the_second_is_refused(base, task, config, tmp_path):
    first = TrainingSession(base, config, task, out=tmp_path, **RUN)
    second = TrainingSession(base, config, task, out=tmp_path, **RUN)
    first.run()
    whole = tree(tmp_path)
    with pytest.raises(SessionError, match="holds a run already"):
        second.run()
    assert second.status == "ready" and tree(tmp_path) == whole
    one_at_a_time.check_none_trains()


def test_while_one_trains_another_is_refused(base, task, config, tmp_path):
    refused = []

    def try_another(event):
        if isinstance(event, Stepped):
            for resume in (False, True):
                try:
                    TrainingSession(base, config, task, out=tmp_path, resume=resume, **RUN)
                except SessionError as error:
                    refused.append(str(error))

    TrainingSession(
        base, config, task, out=tmp_path, listeners=[try_another], **(RUN | {"steps": 1})
    ).run()
    assert len(refused) == 2
    assert all("trains into" in text and repr(str(tmp_path)) in text for text in refused)


def test_who_hears_the_end_may_go_on_in_the_folder(base, task, config, tmp_path):
    made = []

    def go_on(event):
        if isinstance(event, Finished):
            made.append(TrainingSession(base, config, task, out=tmp_path, resume=True, **RUN))

    session = TrainingSession(base, config, task, out=tmp_path, listeners=[go_on], **RUN)
    session.add_listener(lambda e: isinstance(e, Stepped) and e.step == 2 and session.stop())
    session.run()
    assert made[0].run().steps.tolist() == [1, 2, 3, 4]


def test_a_session_that_can_t_begin_leaves_no_trace(base, task, config, tmp_path, monkeypatch):
    session = TrainingSession(base, config, task, out=tmp_path, **RUN)

    def fail(_):
        raise ConfigError("batches can't be shared")

    monkeypatch.setattr(session, "_make_trainer", fail)
    with pytest.raises(ConfigError, match="shared"):
        session.run()
    assert not (tmp_path / "run.trace").exists() and not (tmp_path / "run.json").exists()
    assert TrainingSession(base, config, task, out=tmp_path, **RUN).run().reason == "completed"


def test_settings_are_there_before_the_trace(base, task, config, tmp_path):
    """So that a process that is killed between the two leaves what can be gone on from."""
    seen = []
    session = TrainingSession(
        base, config, task, out=tmp_path, **RUN,
        listeners=[lambda _: seen.append({path.name for path in tmp_path.iterdir()})],
    )  # fmt: skip
    seen.clear()  # a session says that it reads before anybody has asked it to train
    session.run()
    assert {"run.json", "run.trace"} <= seen[0]
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


TRAINS_AND_WAITS = """
import sys
from vblora_lab import TrainingSession, VBLoRAConfig, load_base
from vblora_lab.train import Stepped

def wait(event):
    if isinstance(event, Stepped) and event.step == 3:
        print("step 3", flush=True)
        sys.stdin.read()

TrainingSession(
    load_base(device="cpu"),
    VBLoRAConfig(r=2, num_vectors=16, vector_length=128, target_modules=["q_proj", "v_proj"]),
    "restaurants", steps=4, batch_size=2, eval_examples=0, sample_count=0, save_every=2,
    out=sys.argv[1], listeners=[wait],
).run()
"""


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_killed(base, config, tmp_path):
    out = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", TRAINS_AND_WAITS, str(out)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(vblora_lab.__file__).parents[1],
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "step 3\n"
        before = tree(out)
        for resume in (False, True):
            with pytest.raises(SessionError, match=r"another process.* trains into") as error:
                TrainingSession(base, config, "restaurants", out=out, resume=resume, **RUN)
            assert repr(str(out)) in str(error.value)
        assert tree(out) == before
    finally:
        child.kill()
        child.communicate()
    session = TrainingSession(base, config, "restaurants", out=out, resume=True, **RUN)
    assert session.run().steps.tolist() == [1, 2, 3, 4]
    assert Trace.load(out / "run.trace").steps.tolist() == [1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(base, task, config, tmp_path):
    os.mkfifo(tmp_path / "run.trace")
    with pytest.raises(SessionError, match=r"run\.trace' is a pipe"):
        TrainingSession(base, config, task, out=tmp_path, **RUN)
