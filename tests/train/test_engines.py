"""FSDP2, ZeRO-2 and ZeRO-3 through accelerate, in two processes on a CPU: the same as one alone.

`tests/examples/test_distributed.py` does this on GPUs.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.alike import assert_alike
from vblora_lab import Trace

pytestmark = pytest.mark.skipif(
    not os.environ.get("VBLORA_LAB_PROCESSES"), reason="takes minutes: run by `make processes`"
)
TWO = "-m torch.distributed.run --standalone --nproc-per-node 2 -m -- tests.train.cpu_as_gpu"
TRAIN = (
    "train --steps 6 --batch-size 4 --save-every 3 --seed 3 --r 2 --num-vectors 16 "
    "--vector-length 128 --target-modules q_proj --sample-count 1 --out"
)
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
# What `accelerate launch` makes of the files in examples/distributed.
ENGINES = {
    "FSDP2": {**FSDP, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
    "FSDP2, whole checkpoints": {**FSDP, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
    "DeepSpeed ZeRO-2": {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "DeepSpeed ZeRO-3": {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


def run(launcher, out, *options, **environment):
    done = subprocess.run(
        [sys.executable, *launcher.split(), *TRAIN.split(), str(out), *options],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    run("-m vblora_lab.cli", out, "--eval-examples", "0")
    return out


def assert_same(out, alone):
    expected, found = (Trace.load(each / "run.trace") for each in (alone, out))
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.samples_after[0].text == expected.samples_after[0].text
    for (_, one), (_, other) in zip(found.selections, expected.selections, strict=True):
        assert (one.indices == other.indices).all()
    stored, those = (
        load_file(each / "adapter" / "adapter_model.safetensors") for each in (out, alone)
    )
    assert_alike(stored, those)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_trains_as_one_process_does_and_goes_on(engine, alone, tmp_path):
    if engine.startswith("DeepSpeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed isn't installed")
    out = tmp_path / "run"
    said = run(TWO, out, "--eval-examples", "2", **ENGINES[engine])
    assert f"Trains in 2 processes (cpu, gloo), {engine.partition(',')[0]}" in said
    assert_same(out, alone)
    shutil.rmtree(out / "checkpoint-6")
    shutil.rmtree(out / "adapter")
    run(TWO, out, "--eval-examples", "2", "--resume", **ENGINES[engine])
    assert_same(out, alone)
