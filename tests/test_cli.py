"""The command line and the demo, from a shell as a user would call them."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import peft
import pytest
import torch

from vblora_lab import Trace, load_base
from vblora_lab.app.demo import ProgressBar
from vblora_lab.cli import main
from vblora_lab.train import Stepped

FILES = {"adapter", "loss.png", "selection.png", "run.trace", "summary.json"}


def run_demo(out, *options):
    """The demo in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vblora_lab.cli", "demo", "--out", str(out), *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo of few steps: the folder it leaves and what it prints."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(out, "--steps", "40")


@pytest.mark.long
def test_the_demo_learns_to_say_the_facts(tmp_path):
    run_demo(tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["slot_error_rate"] < 0.10
    assert summary["eval_loss_after"] < 0.25 * summary["eval_loss_before"]


@pytest.mark.slow
def test_the_demo_learns_the_format_and_stores_a_tenth_of_lora(demo):
    out, _ = demo
    summary = json.loads((out / "summary.json").read_text())
    assert {path.name for path in out.iterdir()} == FILES
    assert 0 < summary["slot_error_rate"] < 0.4
    assert summary["eval_loss_after"] < 0.4 * summary["eval_loss_before"]
    assert summary["bleu"] > 35
    assert summary["stored_bytes"] <= summary["lora_stored_bytes"] / 10
    assert summary["reason"] == "completed" and summary["seconds"] > 0


@pytest.mark.slow
def test_the_sizes_in_the_summary_are_those_of_files(demo, tmp_path):
    from safetensors.torch import load_file

    out, _ = demo
    summary = json.loads((out / "summary.json").read_text())
    weights = out / "adapter" / "adapter_model.safetensors"
    assert summary["stored_bytes"] == sum(t.nbytes for t in load_file(weights).values())
    assert summary["adapter_file_bytes"] == weights.stat().st_size
    lora = peft.get_peft_model(
        load_base(device="cpu").model, peft.LoraConfig(r=16, target_modules="all-linear")
    )
    lora.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert summary["lora_stored_bytes"] == sum(t.nbytes for t in stored.values())


@pytest.mark.slow
def test_peft_alone_loads_the_adapter_and_writes_what_the_demo_showed(demo):
    out, _ = demo
    sample = Trace.load(out / "run.trace").samples_after[0]
    base = load_base(device="cpu")
    model = peft.PeftModel.from_pretrained(base.model, out / "adapter").eval()
    start = base.tokenizer(sample.mr + " ->", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**start, max_new_tokens=80, do_sample=False)
    text = base.tokenizer.decode(output[0], skip_special_tokens=True)
    assert text.removeprefix(sample.mr + " ->").strip() == sample.text


@pytest.mark.slow
def test_the_demo_prints_samples_sizes_and_a_progress_bar(demo):
    out, done = demo
    trace = Trace.load(out / "run.trace")
    assert f"Before: {trace.samples_before[0].text}" in done.stdout
    assert f"After: {trace.samples_after[0].text}" in done.stdout
    assert f"{trace.stored_bytes:,} bytes" in done.stdout
    assert f"{len(trace.steps)}/{len(trace.steps)}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss.png", "selection.png"])
def test_the_pictures_show_something(demo, name):
    pixels = matplotlib.image.imread(demo[0] / name)
    assert min(pixels.shape[:2]) > 400
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--steps", "0"], "argument --steps: '0' must be a whole number, 1 or more."),
        (["demo", "--steps", "many"], "'many' must be a whole number, 1 or more."),
        (["demo", "--seed", "-1"], "'-1' must be a whole number, 0 or more."),
        (["plan", "--rank", "8"], "no option --rank. Here it is --r."),
        (["train", "--lr=1", "--out", "x"], "Here it is --bank-rate and --logits-rate."),
        (["plan", "--lr", "1"], "no option --lr. Options"),  # nothing like it there
        (["plan", "--num-vector=8", "--num-vectorz", "8"], "Did you mean '--num-vectors'?"),
        (["train"], "required: --out."),
        (["x"], "invalid choice: 'x'"),
        ([], "required: COMMAND."),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert error.startswith("vblora-lab") and error.endswith("--help\n")


@pytest.mark.slow
def test_an_interrupt_ends_the_demo_quietly_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    class Interrupting(ProgressBar):
        def __call__(self, event):
            super().__call__(event)
            if isinstance(event, Stepped):
                raise KeyboardInterrupt

    monkeypatch.setattr("vblora_lab.app.demo.ProgressBar", Interrupting)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("vblora-lab: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_an_error_before_any_training(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["demo", "--out", str(tmp_path / "taken")]) == 2
    assert "can't be used as a folder" in capsys.readouterr().err
    assert Path(tmp_path / "taken").read_text() == "mine"
