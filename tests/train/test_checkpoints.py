"""HF Trainer's checkpoints: which one a run goes on from, and how many of them stay."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vblora_lab import VBLoRAConfig
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import CHECKPOINT, checkpoints
from vblora_lab.runs.manifest import MANIFEST
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


def flip(file, at=-1):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("adapter_model.safetensors", "has changed"),
        ("adapter_config.json", "has changed"),
        ("training_args.bin", "has changed"),
        ("rng_state.pth", "is missing"),
        ("README.md", "is missing"),
        (MANIFEST, "has no checksums"),
    ],
)
def test_one_changed_bit_or_one_missing_file_is_seen(finished, tmp_path, name, what):
    """Also in the weights, whose file is as readable with a bit flipped as without."""
    out = shutil.copytree(finished, tmp_path / "run")
    file = out / "checkpoint-6" / name
    assert file.exists()
    if what == "has changed":
        flip(file)
    elif what == "is missing":
        file.unlink()
    else:
        file.write_text('{"sha256": []}')
    with pytest.warns(UserWarning, match=rf"checkpoint-6 is damaged \(.*{name} {what}"):
        assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-4"


def test_every_file_of_a_checkpoint_has_its_checksum(finished):
    for checkpoint in checkpoints(finished):
        noted = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
        assert {*noted, MANIFEST} == {path.name for path in checkpoint.iterdir()}


def test_files_that_came_later_do_no_harm(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "checkpoint-6" / "notes.txt").write_text("mine")
    assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-6"


@pytest.mark.parametrize("text", ["[]", "{", '{"sha256": {"optimizer.pt": 3}}', "{}", "[" * 10**5])
def test_a_manifest_that_is_none_is_damage(finished, tmp_path, text):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "checkpoint-6" / MANIFEST).write_text(text)
    with pytest.warns(UserWarning, match=r"checkpoint-6 is damaged \(.*checksums\.json"):
        assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-4"


def test_names_that_lead_out_of_the_checkpoint_are_not_followed(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "checkpoint-6" / MANIFEST).write_text('{"sha256": {"../run.json": "0"}}')
    with pytest.warns(UserWarning, match=r"\.\./run\.json is missing"):
        Checkpoints(RunFolder(out)).latest()


def written_before(finished, tmp_path):
    """A run as earlier versions left it: without manifests."""
    out = shutil.copytree(finished, tmp_path / "run")
    for checkpoint in checkpoints(out):
        (checkpoint / MANIFEST).unlink()
    return out


def test_checkpoints_without_a_manifest_are_gone_on_from(finished, tmp_path):
    out = written_before(finished, tmp_path)
    assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-6"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"global_step": 4}, "is that of step 4"),
        ({"global_step": "6"}, "global_step of type str"),
        ({"log_history": {}}, "log_history of type dict"),
        ({"log_history": [3]}, "a log_history that is none"),
        ({"total_flos": "many"}, "total_flos of type str"),
        ({"mood": "good"}, "an unknown field 'mood'"),
        ([], "where an object"),
    ],
)
def test_a_state_of_wrong_types_is_damage(finished, tmp_path, changed, what):
    out = written_before(finished, tmp_path)
    file = out / "checkpoint-6" / "trainer_state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | changed if isinstance(changed, dict) else changed))
    with pytest.warns(
        UserWarning, match=rf"checkpoint-6 is damaged .*trainer_state\.json .*{what}"
    ):
        assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-4"


@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt"])
def test_what_is_missing_is_seen_without_a_manifest_too(finished, tmp_path, name):
    out = written_before(finished, tmp_path)
    (out / "checkpoint-6" / name).unlink()
    with pytest.warns(UserWarning, match=rf"checkpoint-6 is damaged \({name} is missing"):
        assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-4"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("manifest", [True, False])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(finished, tmp_path, manifest):
    out = tmp_path / "run"
    out = shutil.copytree(finished, out) if manifest else written_before(finished, tmp_path)
    (out / "checkpoint-6" / "optimizer.pt").unlink()
    os.mkfifo(out / "checkpoint-6" / "optimizer.pt")
    with pytest.warns(UserWarning, match=r"checkpoint-6 is damaged \(optimizer\.pt is"):
        assert Checkpoints(RunFolder(out)).latest() == out / "checkpoint-4"


def test_damaged_ones_of_later_steps_don_t_push_out_what_is_whole(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    flip(out / "checkpoint-6" / "optimizer.pt")
    kept = Checkpoints(RunFolder(out), keep=1)
    shutil.copytree(out / "checkpoint-4", kept.aside / "checkpoint-5")
    kept.bring_in(5)
    assert [path.name for path in checkpoints(out)] == ["checkpoint-5", "checkpoint-6"]


TWO_PROCESSES = """
import sys
from vblora_lab import TrainingSession, VBLoRAConfig, load_base, load_task
config = VBLoRAConfig(r=2, num_vectors=16, vector_length=128, target_modules=["q_proj"])
TrainingSession(
    load_base(device="cpu"), config, "restaurants", out=sys.argv[1], steps=2, batch_size=2,
    eval_examples=0, sample_count=0, save_every=1, resume=True,
).run()
"""


@pytest.mark.slow
def test_the_random_states_of_all_processes_have_checksums(tmp_path):
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", tmp_path / "train.py", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    for step in (1, 2):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        noted = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= noted.keys()
    (checkpoint / "rng_state_1.pth").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-2 is damaged \(rng_state_1\.pth is missing"):
        newest = Checkpoints(RunFolder(tmp_path / "run")).latest()
    assert newest == tmp_path / "run" / "checkpoint-1"


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
