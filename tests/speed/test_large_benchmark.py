"""benchmarks/speed.py's section ``large`` in small: its records, its floor, and their report."""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama import modeling_llama

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
LAYERS, VOCABULARY, TOKENS = 2, 50, 2 * 16
Q_AND_O, K_AND_V, MLP = 2 * 64 * 64, 2 * 64 * 32, 3 * 64 * 96  # weights of a layer
DOWN = 64 * 96


@pytest.fixture
def module(monkeypatch):
    """Imports a benchmark's module; all of them see no GPU, whether there is one or not."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("rows", "clock", "peers", "compiled", "large"):
        each = importlib.import_module(f"speed_{name}")
        monkeypatch.setattr(each, "CUDA", False)
        if hasattr(each, "DEVICE"):
            monkeypatch.setattr(each, "DEVICE", torch.device("cpu"))
    monkeypatch.setitem(importlib.import_module("speed_rows").LLAMA_SIZES, "tiny", TINY)
    return importlib.import_module


@pytest.fixture
def row(module):
    make = module("speed_rows").Row

    def of(targets="llama-all", **fields):
        sizes = {"r": 4, "num_vectors": 8, "vector_length": 16}
        return make("tiny", 2, 16, targets, **sizes | fields)

    return of


# --- the floor


def counted(module, method, row):
    """Operations of a checkpointed step as PyTorch counts them, attention spelt out."""
    rows = module("speed_rows")
    base = rows.base_model("tiny")
    base.set_attn_implementation("eager")
    model = rows.adapted(method, base, row)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    step = rows.make_step(model, rows.make_optimizer(model))
    with FlopCounterMode(display=False) as counter:
        step(rows.batch_of(row, VOCABULARY))
    by_kind = counter.get_flop_counts()["Global"]
    return by_kind.pop(torch.ops.aten.bmm), sum(by_kind.values())


@pytest.mark.parametrize("method", ["frozen base", "PEFT LoRA"])
def test_the_floor_is_what_a_step_does(module, row, method):
    row = row("llama-qv")
    found = module("speed_floor").floor(module("speed_rows").base_model("tiny"), row)
    attention, products = counted(module, method, row)
    adapter = found["teraflops_adapter"] if method == "PEFT LoRA" else 0
    assert found["teraflops_base"] + adapter == pytest.approx(products / 1e12, rel=1e-5)
    # Spelt out, attention multiplies what its mask takes away, which is the other half. (Some
    # versions of transformers make a few rotary angles by such a product too.)
    assert found["teraflops_attention"] == pytest.approx(attention / 2 / 1e12, rel=1e-3)


def test_the_floor_by_hand(module, row):
    found = module("speed_floor").floor(module("speed_rows").base_model("tiny"), row())
    # Three times each weight of a layer, but for the last; that and the head twice.
    times = LAYERS * (3 * (Q_AND_O + K_AND_V + MLP) - DOWN) + 2 * 64 * VOCABULARY
    assert found["teraflops_base"] == pytest.approx(2 * TOKENS * times / 1e12, rel=1e-5)
    assert found["gigabytes_weights"] == pytest.approx(4 * times / 1e9, rel=1e-5)
    features = 2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 96) + (96 + 64)
    each = LAYERS * 4 * (4 * features - 64)  # layers, rank; B of the last thrice
    assert found["teraflops_adapter"] == pytest.approx(2 * TOKENS * each / 1e12, rel=1e-5)


# --- the section


def test_a_row_has_all_methods_and_its_floor(module, row):
    large, rows = module("speed_large"), module("speed_rows")
    base, row = rows.base_model("tiny"), row(suffix="-r4")
    record = json.loads(json.dumps(large.large_row(base, row, list(rows.METHODS), 4)))
    assert record["section"] == "large" and record["row"] == "tiny-2x16-llama-all-r4"
    assert list(record["milliseconds"]) == list(rows.METHODS)
    assert all(value > 0 for value in record["milliseconds"].values())
    assert record["peak_gib"] == dict.fromkeys(rows.METHODS)  # a CPU's memory isn't asked
    assert record["floor"] == module("speed_floor").floor(base, row)
    assert 3 <= record["rounds"] <= 5 and record["r"] == 4


def full(model, inputs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nmore")


def test_a_method_that_does_not_fit_is_left_out(module, row, monkeypatch, capsys):
    large, rows = module("speed_large"), module("speed_rows")

    def too_large(base, row):
        model = rows.ours(base, row)
        model.get_base_model().lm_head.register_forward_pre_hook(full)
        return model

    methods = {"frozen base": rows.frozen, "too large": too_large, "PEFT LoRA": rows.lora}
    monkeypatch.setattr(rows, "METHODS", methods)
    record = large.large_row(rows.base_model("tiny"), row(), list(methods), 4)
    assert record["milliseconds"].pop("too large") is None
    assert all(value > 0 for value in record["milliseconds"].values())
    assert capsys.readouterr().out == "too large: CUDA out of memory. Tried to allocate 1 GiB.\n"


def test_a_method_with_liger_that_fails_is_left_out(module, row, monkeypatch, capsys):
    large, rows = module("speed_large"), module("speed_rows")
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # as if it couldn't be imported
    methods = ["frozen base", "PEFT LoRA, Liger"]
    record = large.large_row(rows.base_model("tiny"), row(), methods, 4)
    assert record["milliseconds"].pop("PEFT LoRA, Liger") is None
    assert record["milliseconds"]["frozen base"] > 0
    assert "PEFT LoRA, Liger: left out, ModuleNotFoundError" in capsys.readouterr().out


def test_a_package_that_cannot_be_imported_is_left_out(module, monkeypatch, tmp_path):
    peers = module("speed_peers")
    monkeypatch.setattr(peers, "CUDA", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made_for_others.py").write_text("raise ImportError('needs version 9')")
    assert peers.why_not("made_for_others") == (
        "made_for_others can't be imported (needs version 9)"
    )
    assert peers.why_not("not_at_all_there") == "not_at_all_there isn't installed"
    assert peers.why_not("json") is None


def test_other_errors_are_not_taken_for_a_full_device(module):
    def broken():
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        module("speed_clock").unless_full("broken", broken)


def test_memory_that_runs_out_later_ends_one_method_alone(module):
    calls = []

    def third():
        calls.append(len(calls))
        if len(calls) == 3:
            raise RuntimeError("Triton Error [CUDA]: out of memory")

    times = module("speed_clock").interleaved({"full": third, "well": lambda: None}, 4, 1)
    assert times["full"] is None and times["well"] >= 0 and calls == [0, 1, 2]


def test_a_method_that_takes_too_long_is_left_out(module, row, monkeypatch, capsys):
    large, rows = module("speed_large"), module("speed_rows")
    monkeypatch.setattr(large, "LONGEST_STEP", 0.0)
    record = large.large_row(rows.base_model("tiny"), row(), ["frozen base"], 4)
    assert record["milliseconds"] == {"frozen base": None} and record["rounds"] == 0
    assert "frozen base: left out, a step takes" in capsys.readouterr().out


def test_one_base_serves_all_rows_of_its_kind(module, row, monkeypatch, capsys):
    large = module("speed_large")
    args = argparse.Namespace(rows=None, steps=4)
    assert list(large.large(args)) == []
    assert "there is no GPU" in capsys.readouterr().out
    made = []
    rows = [row("llama-qv"), row(), row(nf4=True)]
    monkeypatch.setattr(large, "CUDA", True)
    monkeypatch.setattr(large, "LARGE_ROWS", rows)
    monkeypatch.setattr(large, "base_model", lambda model: made.append(model))
    monkeypatch.setattr(large, "large_row", lambda base, row, methods, steps: row.name)
    assert list(large.large(args)) == ["tiny-2x16-llama-qv", "tiny-2x16-llama-all"]
    assert made == ["tiny"]
    said = capsys.readouterr().out  # PyTorch sees no GPU here, whatever was set above
    assert "Liger's kernels are left out, there is no GPU" in said
    assert "a base in 4 bits is left out, there is no GPU" in said
    args.rows = ["tiny-2x16-llama-all"]
    assert list(large.large(args)) == args.rows


def test_names_of_rows_are_unique_and_known(module, monkeypatch, capsys):
    speed = module("speed")
    for rows in (speed.LARGE_ROWS, speed.COMPILED_ROWS):
        assert len({row.name for row in rows}) == len(rows)
    monkeypatch.setattr(sys, "argv", ["speed.py", "large", "--rows", "llama-4"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "no such rows: llama-4. There are " in capsys.readouterr().err


def test_liger_s_rotary_embedding_is_there_for_its_own_steps_alone(module, monkeypatch):
    own = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaMLP

    def apply(model):
        modeling_llama.apply_rotary_pos_emb = modeling_llama.LlamaMLP = "Liger's"
        model.append("patched")

    fake = types.ModuleType("liger_kernel.transformers")
    fake.apply_liger_kernel_to_llama = apply
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    base = []
    model = types.SimpleNamespace(get_base_model=lambda: base)
    step = module("speed_peers").with_liger(
        model, lambda batch: (batch, modeling_llama.apply_rotary_pos_emb)
    )
    assert (modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaMLP) == own
    assert step("batch") == ("batch", "Liger's") and base == ["patched"]
    assert (modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaMLP) == own


def test_a_method_of_others_that_is_not_compiled_is_left_out(module, row, monkeypatch, capsys):
    compiled = module("speed_compiled")

    def step(method, base, row, mode):
        if method == broken:
            raise TypeError("no graph")
        return lambda batch: batch["labels"].sum()

    monkeypatch.setattr(compiled, "compiled_step", step)
    base = module("speed_rows").base_model("tiny")
    methods = ["vblora_lab", "PEFT LoRA, Liger", "PEFT LoRA, Liger, eager"]
    measure = argparse.Namespace(steps=2, warm_up=1)
    broken = "PEFT LoRA, Liger"
    record = compiled.compiled_row(base, row(), "default", methods, measure)
    assert list(record["milliseconds"]) == methods and list(record["graphs"]) == ["vblora_lab"]
    assert [name for name, ms in record["milliseconds"].items() if ms is None] == [broken]
    assert "PEFT LoRA, Liger: left out, TypeError: no graph" in capsys.readouterr().out
    broken = "vblora_lab"  # ours is to be compiled
    with pytest.raises(TypeError, match="no graph"):
        compiled.compiled_row(base, row(), "default", methods, measure)


# --- the report

OLD = {
    "section": "large",
    "row": "old",
    "milliseconds": {"frozen base": 200.0, "PEFT LoRA": 250.0},
    "peak_gib": {"frozen base": 18.9, "PEFT LoRA": 19.0},
    "floor": {"teraflops_base": 98.9, "teraflops_adapter": 0.0, "gigabytes_weights": 45.0},
}
NEW = {
    "section": "large",
    "row": "new",
    "milliseconds": {"frozen base": 150.0, "PEFT LoRA": None, "vblora_lab, Liger": 175.0},
    "peak_gib": {"frozen base": 20.0, "PEFT LoRA": None, "vblora_lab, Liger": 20.5},
    "floor": {
        "teraflops_base": 80.0,
        "teraflops_attention": 10.0,
        "teraflops_adapter": 8.9,
        "gigabytes_weights": 40.0,
    },
    "rounds": 5,
}
ABOUT = dict.fromkeys(("torch", "transformers", "peft", "python", "date", "command"), "1")


def test_the_report_has_floors_and_gaps(module):
    page = module("report").page(ABOUT | {"device": "NVIDIA H200"}, [OLD, NEW], "cuda")
    lines = page.splitlines()
    assert "| old | 200.00 | 250.00 |  |" in lines  # this record knew of no Liger
    assert "| new | 150.00 | – | 175.00 |" in lines
    assert "| new | 20.00 | – | 20.50 |" in lines
    assert "| new | 98.9 | 40.0 | 100.0 | 1.50x |  | 1.75x |" in lines
    assert sum(line.startswith("| old |") for line in lines) == 1


def test_the_report_of_another_device_has_no_milliseconds_of_the_floor(module):
    page = module("report").page(ABOUT | {"device": "a card"}, [NEW], "cuda")
    assert "| new | 98.9 | 40.0 |" in page.splitlines() and "floor, ms" not in page


def test_a_floor_is_the_longer_of_arithmetic_and_reading(module):
    large = module("report_large")
    for teraflops, gigabytes, least in ((989, 1, 1000), (1, 4800, 1000), (0, 48, 10)):
        floor = {"teraflops_base": teraflops, "gigabytes_weights": gigabytes}
        assert large.floor_milliseconds(floor, "NVIDIA H200") == pytest.approx(least)
    assert large.floor_milliseconds(floor, "NVIDIA H100 PCIe") is None


def test_the_report_reads_what_is_committed(module):
    for kind in ("cuda", "cpu"):
        data = json.loads((BENCHMARKS / "results" / f"speed-{kind}.json").read_text())
        page = module("report").page(data["about"], data["records"], kind)
        assert page in (BENCHMARKS / "results" / "speed.md").read_text()
