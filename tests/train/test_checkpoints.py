"""HF Trainer's checkpoints: which one a run goes on from, and how many of them stay."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vblora_lab import VBLoRAConfig
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import CHECKPOINT, checkpoints
from vblora_lab.train import TrainingSession
from vblora_lab.train.checkpoints import Checkpoints

RUN = {"steps": 6, "batch_size": 2, "eval_examples": 0, "sample_count": 0, "save_every": 2}


def test_they_are_called_as_the_trainer_calls_them():
    assert f"{PREFIX_CHECKPOINT_DIR}-" == CHECKPOINT


def test_a_new_one_comes_in_and_the_oldest_go(tmp_path):
    kept = Checkpoints(RunFolder(tmp_path), keep=2)
    for step in (8, 9, 10):
        (kept.aside / f"checkpoint-{step}").mkdir(parents=True)
        assert kept.bring_in(step) == tmp_path / f"checkpoint-{step}"
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-11").write_text("no folder")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert not list(kept.aside.iterdir())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", lambda data: data[: len(data) // 2]),
        ("rng_state.pth", lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:]),
        ("adapter_model.safetensors", lambda data: data[:-4]),
        ("trainer_state.json", lambda data: b""),
        ("scheduler.pt", None),
    ],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(finished, tmp_path, name, damage):
    out = shutil.copytree(finished, tmp_path / "run")
    file = out / "checkpoint-6" / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"checkpoint-6 is damaged \({name}"):
        assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-4"
    assert Checkpoints(RunFolder(finished)).latest() == finished / "checkpoint-6"


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(
    base, task, config, finished, tmp_path
):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        session = TrainingSession(base, config, task, out=out, resume=True, **RUN)
    session.run()
    ours, whole = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (out, finished))
    assert all(torch.equal(ours[tensor], whole[tensor]) for tensor in whole)
    assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-6"


@pytest.fixture(scope="module")
def finished(base, task, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    config = VBLoRAConfig(
        r=2, num_vectors=16, vector_length=128, target_modules=["q_proj", "v_proj"]
    )
    TrainingSession(base, config, task, out=out, **RUN).run()
    return out
