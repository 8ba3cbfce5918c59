"""Runs take the GPU that the base model is on, and touch no other."""

import subprocess
import sys
import warnings

import pytest
import torch

import vblora_lab as lab
from vblora_lab.bases import load_base
from vblora_lab.train import TrainingSession
from vblora_lab.train.devices import random_state_kept

CONFIG = {"target_modules": ["q_proj", "v_proj"], "num_vectors": 16, "vector_length": 64}
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def session(device, **options):
    config = lab.VBLoRAConfig(**CONFIG, task_type="CAUSAL_LM")
    base = load_base(device=device)
    few = {"steps": 3, "batch_size": 2, "eval_examples": 2, "sample_count": 1, **options}
    return TrainingSession(base, config, "restaurants", **few)


def test_random_numbers_go_on_as_if_nothing_was_drawn():
    model = torch.nn.Linear(2, 2)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with random_state_kept(model):
        torch.manual_seed(5)
        torch.rand(4)
    assert torch.equal(torch.rand(3), expected)


@two_gpus
@pytest.mark.parametrize("index", [0, 1])
def test_a_session_trains_where_its_base_is(index):
    device = torch.device("cuda", index)
    other = torch.device("cuda", 1 - index)
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats(other)
    before = torch.cuda.max_memory_allocated(other)
    current = torch.cuda.current_device()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fork_rng.*")
        run = session(device)
        trace = run.run()
    assert trace.reason == "completed" and len(trace.losses) == 3
    assert {p.device for p in run.model.parameters()} == {device}
    assert torch.cuda.max_memory_allocated(other) == before
    assert torch.cuda.current_device() == current


@two_gpus
def test_both_gpus_train_the_same_adapter():
    losses = [session(f"cuda:{index}").run().losses for index in (0, 1)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=0)


@two_gpus
def test_a_model_on_the_second_gpu_computes_what_one_on_the_first_does():
    outputs = []
    for index in (0, 1):
        base = load_base(device=f"cuda:{index}")
        torch.manual_seed(0)
        model = lab.get_peft_model(base.model, lab.VBLoRAConfig(**CONFIG))
        tokens = torch.arange(20, device=f"cuda:{index}")[None]
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        model.eval()
        outputs.append((loss.item(), model.generate(tokens, max_new_tokens=5).tolist()))
    assert outputs[0][1] == outputs[1][1]
    assert outputs[0][0] == pytest.approx(outputs[1][0], rel=1e-4)


@two_gpus
def test_torchrun_leaves_no_group_of_processes(tmp_path):
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 -m vblora_lab.cli train"
    few = "--steps 2 --batch-size 4 --eval-examples 0 --sample-count 0 --vector-length 64 --out"
    command = [sys.executable, *torchrun.split(), *few.split(), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "destroy_process_group" not in done.stderr
