"""A worker is killed, torchrun starts all of them anew, and the end is that of an unbroken run."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from vblora_lab import Trace

pytestmark = pytest.mark.skipif(
    not os.environ.get("VBLORA_LAB_PROCESSES"), reason="takes a minute: run by `make processes`"
)
# Without it, workers that were started anew look for those before them (PyTorch 2.13, gloo).
STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **STORE}
RUN = (
    "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m -- "
    "vblora_lab.cli train --resume --steps 16 --batch-size 4 --save-every 4 --seed 3 --r 2 "
    "--num-vectors 16 --vector-length 128 --target-modules q_proj --eval-examples 2 "
    "--sample-count 1 --out"
)


def begin(out):
    command = [sys.executable, *RUN.split(), str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def end(running):
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors[-3000:]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    end(begin(out))
    return out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_changes_nothing(rank, unbroken, tmp_path):
    out = tmp_path / "run"
    running = begin(out)
    while running.poll() is None and not (out / "checkpoint-8").exists():
        time.sleep(0.02)
    children = psutil.Process(running.pid).children()
    worker = next(child for child in children if child.environ().get("RANK") == str(rank))
    worker.send_signal(signal.SIGKILL)
    end(running)
    first, second = (Trace.load(each / "run.trace") for each in (unbroken, out))
    assert second.losses.tolist() == first.losses.tolist()
    stored = load_file(out / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(unbroken / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(stored[name], tensor), name
