"""What a run leaves in its folder, and what happens where it can't."""

import errno
import importlib
import json
import shutil
import subprocess
import sys

import peft
import pytest
import torch

from vblora_lab import VBLoRAConfig, load_base
from vblora_lab.errors import ConfigError, DataError, SessionError
from vblora_lab.runs.folder import RunFolder
from vblora_lab.train import Saved, SaveFailed, Stepped, Trace, TrainingSession
from vblora_lab.train.checkpoints import Checkpoints

RUN = {"steps": 6, "batch_size": 2, "eval_examples": 0, "sample_count": 0, "save_every": 2}


def test_a_folder_holds_the_newest_checkpoints_and_the_adapter(base, task, config, tmp_path):
    events = []
    session = TrainingSession(
        base, config, task, out=tmp_path / "a" / "run", keep=1, listeners=[events.append], **RUN
    )
    session.run()
    out = tmp_path / "a" / "run"
    assert {p.name for p in out.glob("checkpoint-*")} == {"checkpoint-6"}
    assert [e.step for e in events if isinstance(e, Saved)] == [2, 4, 6, 6]
    assert events[-2].folder == str(out / "adapter")
    assert not list((out / ".aside").iterdir())
    whole = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert whole <= {p.name for p in (out / "checkpoint-6").iterdir()}

    fresh = load_base(device="cpu")
    stock = peft.PeftModel.from_pretrained(fresh.model, out / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            stock(ids).logits, session.model(ids).logits, rtol=1e-4, atol=1e-4
        )


def test_a_folder_of_another_run_is_refused_before_anything_is_written(
    base, task, config, tmp_path
):
    TrainingSession(base, config, task, out=tmp_path, **RUN).run()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(SessionError, match=r"holds a run already.*resume=True"):
        TrainingSession(base, config, task, out=tmp_path, **RUN)
    with pytest.raises(ConfigError, match=r"seed=1, but the run .* was started with 0"):
        TrainingSession(base, config, task, out=tmp_path, resume=True, seed=1, **RUN)
    config.r = 4
    with pytest.raises(ConfigError, match=r"config=.*'r': 4"):
        TrainingSession(base, config, task, out=tmp_path, resume=True, **RUN)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def train_with(base, task, config, out):
    events = []
    plain = TrainingSession(base, config, task, **RUN).run()
    session = TrainingSession(base, config, task, out=out, listeners=[events.append], **RUN)
    trace = session.run()
    assert session.status == "completed"
    assert trace.losses.tolist() == plain.losses.tolist(), "training went on in memory"
    return [e for e in events if isinstance(e, SaveFailed)], [
        e.step for e in events if isinstance(e, Saved)
    ]


@pytest.mark.slow
def test_an_unwritable_folder_is_told_and_training_goes_on(base, task, config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    failed, saved = train_with(base, task, config, tmp_path / "file" / "run")
    assert [e.step for e in failed] == [0, 0, 2, 4, 6, 6] and not saved
    assert all("file" in e.problem for e in failed) and "the trace" in failed[0].problem
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("torch.save", OSError(errno.ENOSPC, "No space left on device")),
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file data/0")),
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_disk_that_is_full_for_a_while(base, task, config, tmp_path, monkeypatch, where, error):
    module, name = where.rsplit(".", 1)
    real = getattr(importlib.import_module(module), name)
    full = [False]

    def write(*args, **more):
        if full[0]:
            raise error
        return real(*args, **more)

    def fill_at_4(event):
        events.append(event)
        if isinstance(event, Stepped):
            full[0] = event.step == 4

    monkeypatch.setattr(where, write)
    events = []
    session = TrainingSession(base, config, task, out=tmp_path, listeners=[fill_at_4], **RUN)
    session.run()
    (failed,) = [e for e in events if isinstance(e, SaveFailed)]
    assert failed.step == 4 and "checkpoint of step 4" in failed.problem
    assert str(error) in failed.problem
    assert [e.step for e in events if isinstance(e, Saved)] == [2, 6, 6]
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    assert session.status == "completed"


@pytest.mark.slow
def test_a_really_full_disk(base, task, config, tmp_path):
    """A file system with almost no room, where one can be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        failed, saved = train_with(base, task, config, place / "run")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert {2, 4, 6} <= {e.step for e in failed} and not saved
    assert any("No space left" in e.problem or "writing" in e.problem for e in failed)


@pytest.mark.slow
def test_files_that_may_not_grow_for_a_while(base, task, config, tmp_path):
    """Real writes that really fail, by the system's limit on the size of a file."""
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full_until_4(event):
        events.append(event)
        if isinstance(event, Stepped):
            small = (4096, before[1]) if event.step < 5 else before
            resource.setrlimit(resource.RLIMIT_FSIZE, small)

    events = []
    session = TrainingSession(base, config, task, out=tmp_path, listeners=[full_until_4], **RUN)
    try:
        trace = session.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    failed = [e for e in events if isinstance(e, SaveFailed)]
    assert [e.step for e in failed if "trace" not in e.problem] == [2, 4]
    assert len([e for e in failed if "trace" in e.problem]) == 1
    assert [e.step for e in events if isinstance(e, Saved)] == [6, 6]
    assert trace.reason == "completed" and trace.steps.tolist() == [1, 2, 3, 4, 5, 6]
    told = [type(event) for event in Trace.load(tmp_path / "run.trace").events]
    assert told == [type(event) for event in trace.events], "there was room again"


def test_settings_survive_the_way_through_json(tmp_path):
    folder = RunFolder(tmp_path)
    settings = {"config": {"target_modules": {"v_proj", "q_proj"}}, "pair": (1, 2)}
    folder.open(settings)
    folder.check(settings, resume=True)
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["config"]["target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize("name", ["run.json", "rates.json"])
def test_what_was_noted_and_can_t_be_read_is_named(base, task, config, finished, tmp_path, name):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / name).write_text("{")
    with pytest.raises(DataError, match=rf"{name} can't be read as JSON"):
        TrainingSession(base, config, task, out=out, resume=True, **RUN)


def test_half_written_things_are_cleared_at_the_next_start(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open({})
    (tmp_path / ".aside" / "checkpoint-9").mkdir(parents=True)
    assert Checkpoints(folder).latest() is None
    folder.open({})
    assert not (tmp_path / ".aside" / "checkpoint-9").exists()


@pytest.fixture(scope="module")
def finished(base, task, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    config = VBLoRAConfig(
        r=2, num_vectors=16, vector_length=128, target_modules=["q_proj", "v_proj"]
    )
    TrainingSession(base, config, task, out=out, **RUN).run()
    return out


KEPT_WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "peft", "safetensors"):
    sys.modules[name] = None  # importing it would raise
from pathlib import Path
from types import SimpleNamespace
from vblora_lab.runs import Result, Runs, Trace

def save_pretrained(folder):
    Path(folder).mkdir()
    (Path(folder) / "adapter_config.json").write_text("{}")

model = SimpleNamespace(save_pretrained=save_pretrained)
ended = SimpleNamespace(status="completed", settings={"seed": 3}, trace=Trace(), model=model)
runs = Runs(sys.argv[1])
run = runs.keep("first", ended, Result(1, 2, loss=0.5))
print(run.result.loss, run.settings["seed"], *sorted(path.name for path in run.folder.iterdir()))
"""


def test_a_run_is_kept_without_torch(tmp_path):
    command = [sys.executable, "-c", KEPT_WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    names = ".aside adapter result.json run.json run.trace"
    assert done.stdout.strip() == f"0.5 3 {names}", done.stderr


def test_what_is_replaced_waits_aside_to_be_deleted(tmp_path, monkeypatch):
    """A process that is killed before it has deleted the old one leaves it where it is cleared."""
    folder = RunFolder(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    for text in ("old", "new"):
        with folder.writing("adapter") as aside:
            aside.mkdir()
            (aside / "text").write_text(text)
    assert (tmp_path / "adapter" / "text").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", ".aside"}
    monkeypatch.undo()
    folder.open({})
    assert not list(folder.aside.iterdir())
