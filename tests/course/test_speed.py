"""What notebook 09 defines: the clock, the two ways to mix, and the reader of results."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vblora_lab.speed import kernels

from .notebook import FOLDER, definitions


@pytest.fixture(scope="module")
def defined():
    return definitions("09") | {"device": "cpu"}


@pytest.fixture
def draw(defined):
    # A notebook's functions see the notebook's variables: this one its device.
    defined["draw"].__globals__["device"] = "cpu"
    return defined["draw"]


def test_milliseconds_are_milliseconds(defined):
    assert defined["milliseconds"](lambda: time.sleep(0.02)) >= 20


def test_rivals_take_turns_and_the_median_counts(defined, monkeypatch):
    calls = []
    monkeypatch.setitem(
        defined["race"].__globals__, "milliseconds", lambda call: call()
    )  # each call says how long it takes
    times = iter([900, 900, 5, 70, 7, 60, 6, 5000])

    def one():
        calls.append("one")
        return next(times)

    def other():
        calls.append("other")
        return next(times)

    medians = defined["race"]({"one": one, "other": other}, rounds=3, warm_up=1)
    assert calls == 4 * ["one", "other"]
    assert medians == {"one": 6, "other": 70}


def test_both_ways_to_mix_give_the_same_matrices_and_gradients(defined, draw):
    bank, logits = draw(layers=2, h=32, b=8)
    ways = [defined["one_by_one"], defined["at_once"]]
    for pair, other in zip(*(way(logits, bank) for way in ways), strict=True):
        torch.testing.assert_close(tuple(pair), tuple(other))
    one, other = (defined["forward_and_backward"](way, bank, logits)() for way in ways)
    assert len(one) == 1 + 2 * 12
    torch.testing.assert_close(one, other)


def test_the_switch_of_the_kernels_is_put_back(defined):
    before = kernels.enabled
    assert defined["with_kernels"](False, lambda: kernels.enabled)() is False
    assert defined["with_kernels"](True, lambda: kernels.enabled)() is True
    with pytest.raises(ZeroDivisionError):
        defined["with_kernels"](not before, lambda: 1 / 0)()
    assert kernels.enabled == before


@pytest.mark.slow
def test_it_reads_what_the_benchmark_writes(defined, tmp_path):
    assert defined["read_results"](tmp_path / "none") == []
    script = FOLDER.parent / "benchmarks" / "speed.py"
    subprocess.run(
        [sys.executable, script, "training", "--rows", "mini-opt-16x64-all", "--steps", "1",
         "--warm-up", "0", "--out", tmp_path],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (path,) = Path(tmp_path).glob("speed-*.json")
    about = json.loads(path.read_text())["about"]
    ((machine, records),) = defined["read_results"](tmp_path)
    assert machine == about["device"]
    steps = defined["of_section"](records, "training")
    assert list(steps) == ["mini-opt-16x64-all"]
    assert {"frozen base", "PEFT VB-LoRA", "vblora_lab"} <= set(steps["mini-opt-16x64-all"])
