"""`examples/distributed`: the command and a Trainer program under each engine, on two GPUs."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vblora_lab import Trace, load_base

EXAMPLES = Path(__file__).parents[2] / "examples" / "distributed"
ENGINES = {"ddp": "DDP", "fsdp2": "FSDP2", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3"}
CONFIG = ["--r", "2", "--num-vectors", "16", "--vector-length", "128", "--target-modules", "q_proj"]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
engines = pytest.mark.parametrize("engine", ENGINES)


def test_each_file_says_what_it_is_and_names_no_machine():
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(ENGINES)
    for name in ENGINES:
        text = (EXAMPLES / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert yaml.safe_load(text)["num_processes"] == 2


def launch(engine, *command):
    """What a run said, under an engine's config file; under none for a run in one process."""
    launcher = [sys.executable]
    if engine is not None:
        if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
            pytest.skip("DeepSpeed isn't installed")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        config = str(EXAMPLES / f"{engine}.yaml")
        launcher += ["-m", "accelerate.commands.launch", "--config_file", config]
        launcher += ["--main_process_port", port]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def train(engine, out, *options):
    few = "--steps 6 --batch-size 4 --save-every 3 --seed 3 --eval-examples 4 --sample-count 1"
    return launch(
        engine, "-m", "vblora_lab.cli", "train", *few.split(), *CONFIG, "--out", str(out), *options
    )


def stored(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_near(found, expected):
    """To the digits of bfloat16, in which GPUs don't add up in the same order every time."""
    assert (found.float() - expected.float()).norm() <= 0.02 * expected.float().norm()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    os.environ.pop("LOCAL_RANK", None)
    train(None, out)
    return Trace.load(out / "run.trace")


@two_gpus
@engines
def test_the_command_trains_as_one_process_does_and_goes_on(engine, alone, tmp_path):
    out = tmp_path / "run"
    said = train(engine, out)
    assert f"Trains in 2 processes (cuda, nccl), {ENGINES[engine]}" in said
    trace = Trace.load(out / "run.trace")
    assert trace.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert trace.losses == pytest.approx(alone.losses, rel=0.02)  # of bfloat16
    assert trace.samples_after[0].text
    whole = stored(out)
    model = peft.PeftModel.from_pretrained(load_base(device="cpu").model, out / "adapter")
    assert model.peft_config["default"].num_vectors == 16

    shutil.rmtree(out / "checkpoint-6")
    shutil.rmtree(out / "adapter")
    train(engine, out, "--resume")
    assert Trace.load(out / "run.trace").losses == pytest.approx(trace.losses, rel=0.01)
    for name, tensor in stored(out).items():
        assert_near(tensor, whole[name])


@two_gpus
@engines
def test_a_plain_trainer_program_trains_and_goes_on(engine, tmp_path):
    program = [str(EXAMPLES / "with_trainer.py"), "--out", str(tmp_path), "--batch-size", "2"]
    launch(engine, *program, "--steps", "20")
    whole = stored(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-20")
    shutil.rmtree(tmp_path / "adapter")
    launch(engine, *program, "--steps", "20", "--resume")
    for name, tensor in stored(tmp_path).items():
        assert_near(tensor, whole[name])
    assert (tmp_path / "checkpoint-20").is_dir()
