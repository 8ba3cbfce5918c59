"""Instructions: what counts as right, and the whole road with mini-OPT in a few steps."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import vblora_lab as lab
from vblora_lab.course import measured

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    return script("examples")


def script(folder):
    path = ROOT / folder / "instructions.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_instructions", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RIGHT = "task | who: Ana | what: call the bank: today | when: -"


def test_the_fields_of_a_line(example):
    expected = {"kind": "task", "who": "Ana", "what": "call the bank: today", "when": "-"}
    assert example.fields_of(f" {RIGHT}\n") == expected
    for wrong in (
        "",
        "Of course! " + RIGHT,
        RIGHT + "\nAnything else?",
        RIGHT + " | where: here",
        "note | who: Ana | what: x | when: -",
        "task | what: x | who: Ana | when: -",
        "task | who: | what: x | when: -",
        "task | who: Ana | what: x",
    ):
        assert example.fields_of(wrong) is None, wrong


def test_what_is_right_is_counted_field_by_field(example):
    asked = lab.load_task("office").test[:2]
    references = [asked[0].references[0], asked[1].references[0]]
    assert example.share_right(asked, references) == example.share_in_form(references) == 1
    kind, *fields = references[0].split(" | ")
    one_wrong = " | ".join([kind, *fields[:-1], f"{fields[-1]}x"])
    assert example.share_right(asked, [one_wrong, references[1]]) == 7 / 8
    assert example.share_right(asked, [one_wrong, "Sure!"]) == 3 / 8
    assert example.share_in_form([one_wrong, "Sure!"]) == 1 / 2


@pytest.mark.slow
def test_from_instructions_to_a_lora(example, tmp_path, capsys):
    out = tmp_path / "office"
    assert example.main(["--steps", "2", "--held-out", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "PEFT loads it" in printed and "of the fields are right" in printed
    config = json.loads((out / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4
    stored = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert stored["save_only_topk_weights"] is True


def test_the_course_shows_what_the_benchmark_found():
    bench = script("benchmarks")
    lines = bench.table(bench.read(bench.FOUND))
    shown = [{name: str(value) for name, value in line.items()} for line in lines]
    assert measured.instructions() == shown and len(shown) >= 1
