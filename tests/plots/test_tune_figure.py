"""The figure of a search shows each trial where it belongs, and labels its axes."""

import math

import pytest

from vblora_lab import LearningRates, Tuned, VBLoRAConfig
from vblora_lab.plots import BLUE, tune_figure
from vblora_lab.train.tune_result import Tried


def tried(number, size, loss, last=None, method="vblora"):
    return Tried(
        f"trial-{number:03d}", method, "attention", VBLoRAConfig(target_modules=["q_proj"]),
        LearningRates(), size, loss, loss if last is None else last,
        "completed" if loss == loss else "cut short",
    )  # fmt: skip


@pytest.fixture
def tuned():
    sizes, losses = (30_000, 60_000, 90_000, 80_000), (2.0, 1.5, 1.2, 1.9)
    done = [tried(i, *pair) for i, pair in enumerate(zip(sizes, losses, strict=True))]
    cut = [tried(4, 70_000, math.nan, 2.5), tried(5, 70_000, math.nan, math.nan)]
    settings = {"base": "mini-opt", "task": "a$b$c"}
    return Tuned((*done, *cut, tried(6, 50_000, 1.8, method="lora")), 100_000, settings)


def test_each_trial_has_its_dot_and_the_front_its_line(tuned):
    figure = tune_figure(tuned)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    points = {name: list(zip(*line.get_data(), strict=True)) for name, line in lines.items()}
    assert points["VB-LoRA"] == [(t.bytes, t.loss) for t in tuned.trials[:4]]
    assert points["VB-LoRA, cut short"][0] == (70_000, 2.5)
    assert points["LoRA"] == [(50_000, 1.8)]
    assert points["front"] == [(30_000, 2.0), (50_000, 1.8), (60_000, 1.5), (90_000, 1.2)]
    assert set(lines["budget"].get_xdata()) == {100_000}
    assert lines["VB-LoRA"].get_markerfacecolor() == BLUE
    assert lines["VB-LoRA, cut short"].get_markerfacecolor() == "white"


@pytest.mark.parametrize("budget", [100_000, 100_000_000])
def test_axes_say_what_they_are(tuned, budget):
    figure = tune_figure(Tuned(tuned.trials, budget, tuned.settings))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and "bytes" in axes.get_xlabel()
    assert "nats per token" in axes.get_ylabel()
    figure.canvas.draw()
    low, high = axes.get_xlim()
    inside = [t.get_text() for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert len(inside) >= 3 and all(text.endswith("iB") for text in inside)
    assert "trial-002" in figure.alt and "7 trials, 2 of them" in figure.alt
