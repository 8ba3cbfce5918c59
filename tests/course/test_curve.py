"""Stored bytes against loss: benchmarks/pareto.py, and what the course ships of its results."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

import vblora_lab as lab
from vblora_lab.bases import share_weights
from vblora_lab.course import measured
from vblora_lab.tuner.precision import PRECISIONS, bytes_of, rounded

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def pareto():
    """The modules of the benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import pareto
        import pareto_plan
        import pareto_report
        import pareto_trial
    return {"run": pareto, "plan": pareto_plan, "report": pareto_report, "trial": pareto_trial}


@pytest.fixture(scope="module")
def plans(pareto):
    run, plan = pareto["run"], pareto["plan"]
    return {b: plan.Plan(run.SETTINGS[b], plan.ENTRIES[b](), set()) for b in run.SETTINGS}


@pytest.fixture(scope="module")
def done(pareto):
    return pareto["run"].Outcomes(pareto["run"].RESULTS).done


# --- what is trained, and in which order


def pretend(plan, best, studies):
    """Outcomes of a plan whose loss is a parabola over the rates' logarithms."""
    done, order = {}, []
    while wanted := sorted(plan.wanted(done, studies), key=lambda each: each[0]):
        trial = wanted[0][1]
        assert trial.key not in done
        order.append(trial)
        done[trial.key] = {"loss": {"float32": math.log(trial.rate / best) ** 2}}
    return done, order


@pytest.mark.parametrize("best", [1.1e-2, 2e-3, 3e-1])
def test_each_search_ends_around_the_best_rate_or_after_so_many(pareto, plans, best):
    plan, rungs = plans["mini-opt"], pareto["plan"].RUNGS
    done, order = pretend(plan, best, ["controls"])
    for entry in plan.entries:
        if entry.study == "controls":
            tried = plan.losses(plan.searched(entry), done)
            assert 2 < len(tried) <= rungs
            found = pareto["plan"].rung(plan.rate(entry, done))
            inside = min(tried) < found < max(tried)
            assert inside or len(tried) == rungs
            assert len(plan.finals(entry, done)) == 5
    controls = {e.name for e in plan.entries if e.study == "controls"}
    # Of what isn't a control, the one search that "all trained" takes its rates from.
    assert {t.name for t in order} - controls == {"VB-LoRA r=8, 64x128"}


def test_a_trial_is_known_by_its_content(pareto, plans):
    plan = plans["mini-opt"]
    trial = plan.entries[0].trial(plan.setting, 0.01, 0)
    assert dataclasses.replace(trial, name="another").key == trial.key
    for change in ({"rate": 0.02}, {"seed": 1}, {"steps": 5}, {"validation": 7}, {"ratio": 3.0}):
        assert dataclasses.replace(trial, **change).key != trial.key, change


def test_what_was_measured_is_known_today(pareto, done):
    """A key that changed would throw away hours of a GPU."""
    names = {field.name for field in dataclasses.fields(pareto["trial"].Trial)}
    assert len(done) > 100
    for key, row in done.items():
        assert pareto["trial"].Trial(**{n: v for n, v in row.items() if n in names}).key == key


# --- what is stored


def test_what_is_measured_is_the_file_and_the_model_comes_back(pareto, tmp_path):
    config = lab.VBLoRAConfig(
        r=2, num_vectors=16, vector_length=64, target_modules=["q_proj"],
        save_only_topk_weights=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    base = lab.load_base("mini-opt", device="cpu").model
    model = lab.get_peft_model(share_weights(base), config).eval()
    tokens = torch.arange(3, 23)[None]
    before = {name: p.clone() for name, p in model.named_parameters()}
    for precision in PRECISIONS:
        folder = lab.save_adapter(model, tmp_path / precision, precision)
        stored = load_file(next(folder.glob("*.safetensors")))
        loaded = lab.from_pretrained(share_weights(base), folder)
        with torch.no_grad(), pareto["trial"].stored_as(model, precision) as (bank, rest):
            assert torch.equal(model(tokens).logits, loaded(tokens).logits)
        assert bank + rest == sum(tensor.nbytes for tensor in stored.values())
        assert bank == sum(tensor.nbytes for key, tensor in stored.items() if "bank" in key)
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name])


def test_other_methods_are_rounded_by_the_same_rule(pareto):
    base = lab.load_base("mini-opt", device="cpu").model
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(share_weights(base), lora)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    for precision in PRECISIONS:
        with pareto["trial"].stored_as(model, precision) as (bank, rest):
            sizes = [bytes_of(p.numel(), precision) for p in trained.values()]
            assert (bank, rest) == (0, sum(sizes))
            for name, p in trained.items():
                assert torch.equal(p, rounded(before[name], precision))
        assert all(torch.equal(p, before[name]) for name, p in trained.items())


def test_bytes_that_were_measured_are_those_of_the_formula(done):
    """Of all VB-LoRA in all linear layers of mini-OPT, from its config and its sizes."""
    base = lab.load_base("mini-opt", device="cpu").model
    for row in done.values():
        if (row["base"], row["kind"]) == ("mini-opt", "VB-LoRA") and len(row.get("bytes", "")) == 3:
            planned = lab.plan(base, lab.VBLoRAConfig(**row["fields"]))
            sizes = [sum(row["bytes"][precision].values()) for precision in PRECISIONS]
            assert sizes == [planned.topk_bytes, planned.float16_bytes, planned.int8_bytes]
            break
    else:
        raise AssertionError("nothing to compare")


# --- what the course and README show


def test_shipped_rows_are_those_of_the_outcomes(pareto, plans, done):
    report = pareto["report"]
    for base, plan in plans.items():
        rows = [{k: str(v) for k, v in row.items()} for row in report.curve_rows(plan, done)]
        assert rows == list(measured._rows(measured.CURVE, base))
        rows = [{k: str(v) for k, v in row.items()} for row in report.control_rows(plan, done)]
        assert rows == list(measured._rows(measured.CONTROLS, base))


def test_tables_are_those_of_the_shipped_rows(pareto):
    report = pareto["report"]
    points = measured.curve(report.README_BASE)
    page = (BENCHMARKS / "results" / "pareto.md").read_text(encoding="utf-8")
    assert report.best_table(points) in page and report.front_text(points) in page
    readme = report.README.read_text(encoding="utf-8")
    assert report.in_readme(readme, points) == readme
    with pytest.raises(ValueError, match="has no"):
        report.in_readme("nothing here", points)


def test_losses_are_those_of_the_runs(done):
    """By another way: rows of the file, without the plan."""
    name = "VB-LoRA r=4, 256x192"
    (point,) = (p for p in measured.curve(bits=32) if p.name == name)
    runs = [row for row in done.values() if row["name"] == name and not row["change"]]
    searched = [row["loss"]["float32"] for row in runs if row["seed"] == 0]
    assert point.losses.searched == pytest.approx(min(x for x in searched if x), abs=1e-5)
    later = [row for row in runs if row["seed"]]
    assert point.losses.mean == pytest.approx(
        np.mean([row["loss"]["float32"] for row in later]), abs=1e-5
    )
    assert point.size == sum(later[0]["bytes"]["float32"].values())
    assert json.dumps(later[0]["fields"])  # plain data


def test_noise_is_that_of_single_runs():
    losses = [(1.0, 1.2), (2.0, 2.2), (3.0,)]
    points = [
        measured.Point("a", "a", 8, 1, measured.Losses(first, tuple(rest)))
        for first, *rest in losses
    ]
    assert measured.noise(points) == pytest.approx(np.std([1.0, 1.2], ddof=1))


def test_eight_bits_cost_no_loss():
    """As README says."""
    exact = {p.name: p.losses.all for p in measured.curve(bits=32)}
    for point in measured.curve(bits=8):
        np.testing.assert_allclose(point.losses.all, exact[point.name], atol=1e-3)
