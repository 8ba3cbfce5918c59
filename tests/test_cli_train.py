"""`vblora-lab train`, from a shell as a user would call it, and by torchrun and accelerate."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from tests.alike import assert_alike
from vblora_lab import Trace, load_base
from vblora_lab.app.train import report
from vblora_lab.cli import main
from vblora_lab.runs.events import Sample
from vblora_lab.train import Sampled, Started

LAB = [sys.executable, "-m", "vblora_lab.cli"]
CONFIG = ["--r", "2", "--num-vectors", "16", "--vector-length", "128", "--target-modules", "q_proj"]
LOOKS = ["--eval-examples", "2", "--sample-count", "1"]
# Seeds must be all that is drawn, so no GPU, and one thread each.
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def train(out, *options, launcher=LAB, steps=6, preexec_fn=None):
    command = [*launcher, "train", "--steps", str(steps), "--batch-size", "4", "--out", str(out)]
    return subprocess.run(
        [*command, *CONFIG, *LOOKS, *options],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        preexec_fn=preexec_fn,
    )


def tensors(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    done = train(
        out, "--seed", "3", "--eval-every", "3", "--sample-every", "4", "--save-every", "4"
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_run_leaves_adapter_trace_and_checkpoints(trained):
    out, done = trained
    left = {path.name for path in out.iterdir()} - {".aside", ".run.lock"}
    assert left == {"adapter", "run.trace", "run.json", "checkpoint-4", "checkpoint-6"}
    trace = Trace.load(out / "run.trace")
    assert trace.steps.tolist() == [1, 2, 3, 4, 5, 6] and trace.reason == "completed"
    assert trace.eval_steps.tolist() == [0, 3, 6]
    assert [e.step for e in trace.events if isinstance(e, Sampled)] == [0, 4, 6]
    assert "6/6" in done.stderr and trace.samples_after[0].text in done.stdout
    assert f"{trace.eval_losses[-1]:.3f}" in done.stdout
    base = load_base(device="cpu").model
    model = peft.PeftModel.from_pretrained(base, out / "adapter")
    assert model.peft_config["default"].r == 2
    assert isinstance(model, peft.PeftModelForCausalLM)


def test_the_last_line_names_what_is_there(trained):
    out, done = trained
    names = "run.trace, run.json, checkpoint-4/, checkpoint-6/, adapter/"
    assert done.stdout.splitlines()[-1] == f"Left in {out}: {names}"


def test_a_run_that_could_not_be_saved_says_so_and_fails(tmp_path):
    """Files may have 64 KiB: settings and the trace's beginning fit, weights don't."""
    resource = pytest.importorskip("resource")

    def at_most_64_kib():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))

    done = train(tmp_path / "run", "--num-vectors", "512", steps=2, preexec_fn=at_most_64_kib)
    assert done.returncode == 1, done.stderr
    last = done.stdout.splitlines()[-1]
    there, _, problems = last.partition(";")
    assert "the adapter not saved: " in problems and "adapter/" not in there
    for name in there.partition(": ")[2].split(", "):
        assert (tmp_path / "run" / name).exists()


@pytest.mark.parametrize(("asked", "slots"), [("name[Otto]", True), ("File this: a lamp.", False)])
def test_of_an_instruction_no_slots_are_told(asked, slots):
    trace = SimpleNamespace(
        reason="completed", steps=[3], eval_losses=[2.0, 1.0],
        samples_after=(Sample(asked, "a", "b", ()),),
    )  # fmt: skip
    told = report("mini-opt", trace)
    assert asked in told and ("slot errors: none" in told) is slots


def test_a_folder_that_is_taken_is_refused(trained, capsys):
    assert main(["train", "--out", str(trained[0]), *CONFIG]) == 2
    error = capsys.readouterr().err
    assert "holds a run already" in error and "--resume" in error


def test_what_is_wrong_is_said_in_a_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for options, words in (
        (["--out", str(tmp_path / "file" / "x")], "can't be used as a folder"),
        (["--out", str(tmp_path / "a"), "--preset", "basc"], "basic"),
        (["--out", str(tmp_path / "b"), "--task", "restarants"], "restaurants"),
        (["--out", str(tmp_path / "c"), "--bank-rate", "-1"], "learning rate bank=-1"),
        (["--out", str(tmp_path / "d"), "--topk", "0"], "topk"),
        (["--out", str(tmp_path / "new" / "e"), "--target-modules", "q"], "q_proj"),
    ):
        assert main(["train", *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vblora-lab: ") and words in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "no folder is left"
    assert main(["train", "--out", str(tmp_path / "e"), "--preset", "list"]) == 0
    assert "basic" in capsys.readouterr().out


def in_this_process(out, *options):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in ENVIRONMENT
    try:
        assert main(["train", *options, "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a lone process can't be sent Ctrl-C there")
def test_an_interrupt_is_a_clean_stop_and_resume_goes_on(tmp_path, monkeypatch):
    """A process that is interrupted, and another that goes on, end as a third that does it all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--steps", "24", "--batch-size", "2", "--save-every", "4", *CONFIG, *LOOKS]
    running = subprocess.Popen(
        [*LAB, "train", *options, "--out", str(parts)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    in_this_process(whole, *options)
    while running.poll() is None and not list(parts.glob("checkpoint-*")):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    assert "stopped after step" in output and "--resume" in output
    assert Trace.load(parts / "run.trace").reason == "stopped"
    assert peft.PeftConfig.from_pretrained(parts / "adapter").r == 2

    in_this_process(parts, "--resume", *options)
    resumed, uninterrupted = tensors(parts), tensors(whole)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    trace = Trace.load(parts / "run.trace")
    assert trace.losses.tolist() == Trace.load(whole / "run.trace").losses.tolist()
    assert sum(isinstance(event, Started) for event in trace.events) == 1


def torchrun():
    # After "--", or torchrun takes --r for an option of its own.
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]


def accelerate():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # --multi_gpu means several processes, which find no GPU in this ENVIRONMENT.
    return [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port", port, "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "-m",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torch is built without torchrun's libuv there")
@pytest.mark.parametrize("launcher", [torchrun, pytest.param(accelerate, marks=pytest.mark.long)])
def test_two_processes_train_as_one_does(trained, tmp_path, launcher):
    command = [sys.executable, *launcher(), "vblora_lab.cli"]
    done = train(tmp_path / "two", "--seed", "3", "--save-every", "4", launcher=command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_alike(tensors(tmp_path / "two"), tensors(trained[0]))
    trace, alone = (Trace.load(out / "run.trace") for out in (tmp_path / "two", trained[0]))
    assert trace.losses == pytest.approx(alone.losses, abs=1e-5)
    assert trace.steps.tolist() == alone.steps.tolist(), "one process alone told its steps"
    assert done.stdout.count("completed after step 6") == 1
    random_states = {p.name for p in (tmp_path / "two" / "checkpoint-6").glob("rng_state*")}
    assert random_states == {"rng_state_0.pth", "rng_state_1.pth"}


def test_a_batch_that_can_not_be_shared_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 2)  # as it is under torchrun
    assert main(["train", "--out", str(tmp_path / "odd"), "--batch-size", "3", *CONFIG]) == 2
    error = capsys.readouterr().err
    assert "batch_size=3 can't be shared evenly by 2 processes; the next that can is 4" in error
