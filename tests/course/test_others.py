"""Chapter 08: what it ships, what it quotes, and what its notebook defines."""

import csv
from pathlib import Path

import numpy as np
import pytest

import vblora_lab as lab
from vblora_lab.course import measured, paper

from .notebook import definitions, script

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "quality.py"


@pytest.fixture(scope="module")
def benchmark():
    return script(BENCHMARK)


def test_shipped_results_are_those_of_the_benchmark_s_table(benchmark):
    repeats = measured.quality()
    with open(measured.QUALITY, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["method"] for row in rows] == [n for n, r in repeats.results.items() for _ in r]
    assert list(repeats.results) == [benchmark.NONE, *benchmark.methods()]
    for name in repeats.results:
        losses = [float(row["validation_loss"]) for row in rows if row["method"] == name]
        assert repeats.values(name, "loss") == losses and len(losses) >= (name != benchmark.NONE)
        assert repeats.mean(name, "loss") == pytest.approx(np.mean(losses))
    assert benchmark.table(rows) in benchmark.TABLE.read_text()
    assert list(benchmark.RATES_TRIED) == list(benchmark.methods())


def test_shipped_sizes_are_those_of_the_configs(benchmark):
    from vblora_lab.bases import share_weights
    from vblora_lab.train.methods import prepare, stored_bytes, trained_parameters

    base, shipped = lab.load_base("mini-opt", device="cpu"), measured.quality().results
    for name, (config, _) in benchmark.methods().items():
        model = prepare(share_weights(base.model), name, config)
        first = shipped[name][0]
        assert trained_parameters(model) == first.trained_parameters
        assert stored_bytes(model) == first.stored_bytes


def test_the_benchmark_adds_runs_to_those_that_are_there(benchmark, tmp_path, monkeypatch):
    row = {"steps": 5, "trained_parameters": 1, "stored_bytes": 4, "validation_loss": 0.5}
    row |= {"bleu": 1.0, "slot_error_rate": 0.1, "seconds": 2.0}

    def run(name, base, task, steps, seed, test_size):
        return {"method": name, "seed": seed, **row, "steps": 0 if name == "no training" else steps}

    def call(*arguments):
        files = ["--csv", f"{tmp_path}/quality.csv", "--table", f"{tmp_path}/quality.md"]
        monkeypatch.setattr("sys.argv", ["quality.py", "--steps", "5", *files, *arguments])
        benchmark.main()
        with open(tmp_path / "quality.csv", newline="", encoding="utf-8") as lines:
            return [(line["method"], int(line["seed"])) for line in csv.DictReader(lines)]

    monkeypatch.setattr(benchmark, "run", run)
    assert call("--methods", "VeRA", "no training", "--seeds", "1", "2") == [
        ("no training", 1), ("VeRA", 1), ("VeRA", 2),
    ]  # fmt: skip
    assert call("--methods", "LoRA", "VeRA", "--seeds", "2") == [
        ("no training", 1), ("LoRA", 2), ("VeRA", 1), ("VeRA", 2),
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        call("--methods", "IA3", "--steps", "6")


def test_sizes_quoted_from_the_paper_follow_from_its_formulas():
    """Section 3.4: LoRA stores 2 L M d r numbers, VeRA L M (d + r). In millions, as printed."""
    sizes = {(t.number, t.model): {n: size for n, size, _ in t.rows} for t in paper.TABLES}
    roberta = sizes[1, "RoBERTa-large (q, v)"]
    layers, modules, width = 24, 2, 1024
    assert round(2 * layers * modules * width * 8 / 1e6, 3) == roberta["LoRA"]
    assert round(layers * modules * (width + 256) / 1e6, 3) == roberta["VeRA"]
    llama = sizes[3, "Llama2 13B"]
    assert llama["VB-LoRA"] / llama["LoRA"] == pytest.approx(0.004, abs=5e-4)  # "0.4%", abstract
    gpt2 = sizes[2, "GPT-2 Medium"]
    assert gpt2["VB-LoRA"] / gpt2["VeRA"] == pytest.approx(0.8, abs=0.03)  # "about 20% less"


# --- the notebook


@pytest.fixture(scope="module")
def defined():
    return definitions("08")


def test_the_front_is_what_nobody_beats(defined):
    points = {"a": (1, 5), "b": (2, 3), "c": (3, 4), "d": (2, 3), "e": (9, 1)}
    assert defined["front"](points) == ["a", "b", "d", "e"]  # b and d are equal: neither wins
    assert defined["front"]({"alone": (1, 1)}) == ["alone"]
    assert lab.check("08-front", defined["front"]).right


def test_sizes_by_formula_are_those_of_the_models(defined):
    """For VeRA and IA3; for VB-LoRA and LoRA they are those of `plan`, which has its own tests."""
    from vblora_lab.app.demo import demo_config
    from vblora_lab.bases import load_skeleton

    measured_sizes = {n: r[0].stored_bytes for n, r in measured.quality().results.items()}
    sizes = defined["stored"](load_skeleton("mini-opt"), demo_config(), vera_rank=256)
    for name in ("VB-LoRA", "LoRA", "VeRA", "IA3"):
        assert sizes[name] == measured_sizes[name], name
