"""How far slot errors can be trusted: benchmarks/slot_errors.py, on texts of people and generated.

The texts of people are those of cleaned E2E, which does not ship: it is looked for beside the
repository, in shared/data.
"""

import importlib.util
from pathlib import Path

import pytest

from vblora_lab.data import DOMAINS, Example, load_task, parse_mr, read_csv, slot_error_rate

ROOT = Path(__file__).resolve().parents[2]
CLEANED = ROOT.parent / "shared" / "data" / "e2e-cleaned"
FILES = ("devel.csv", "test.csv")


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "slot_errors.py"
    spec = importlib.util.spec_from_file_location("slot_errors_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=FILES)
def examples(request):
    if not (CLEANED / request.param).exists():
        pytest.skip(f"{CLEANED / request.param} is not there")
    return read_csv(CLEANED / request.param)


def test_few_slots_of_human_texts_are_called_errors(script, examples):
    assert script.human_rate(examples) < 0.01


def test_texts_that_do_not_say_their_facts_are_found(script, examples):
    changed = script.changed(examples, 2000)
    assert len(changed) == 2000
    for name in script.CHANGES:
        assert sum(one.change == name for one in changed) in (666, 667)
    assert sum(one.is_found for one in changed) >= 0.97 * 2000


@pytest.mark.parametrize("name", DOMAINS)
def test_generated_texts_have_no_error(name):
    task = load_task(name, seed=1)
    pairs = [(e.facts, text) for e in (*task.validation, *task.test) for text in e.references]
    assert slot_error_rate(task.domain, [f for f, _ in pairs], [text for _, text in pairs]) == 0


def test_changes_of_generated_restaurants_are_found(script):
    """Without the files of cleaned E2E too, that a change is what it is called."""
    examples = load_task("restaurants").test
    before = {text: example.facts for example in examples for text in example.references}
    changed = script.changed(examples, 300)
    for one in changed:
        old, new = before[one.text], parse_mr(one.mr)
        more = {"taken out": -1, "put in": 1, "exchanged": 0}[one.change]
        assert len(new) == len(old) + more
        assert {slot for slot in old | new if old.get(slot) != new.get(slot)} == {one.slot}
    assert sum(one.is_found for one in changed) >= 0.97 * 300


def test_too_few_values_for_a_change_are_refused(script):
    examples = [Example("name[Otto], food[Thai]", ("Otto serves Thai food.",))]
    with pytest.raises(ValueError, match="no text has a slot that could be put in"):
        script.changed(examples, 3)


def test_the_script_prints_both_rates_of_a_file(script, tmp_path, capsys, monkeypatch):
    rows = [
        ('"name[Otto], food[Thai]"', "Otto serves Thai food."),
        ('"name[Otto], food[French]"', "Otto serves French food."),
        ('"name[Anna], area[riverside]"', "Anna is by the river."),
        ('"name[Anna], area[harbour]"', "Anna is at the harbour."),
        ('"name[Otto], area[riverside]"', "Otto."),
    ]
    text = "\n".join(f"{mr},{text}" for mr, text in [("mr", "ref"), *rows])
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["slot_errors.py", str(tmp_path / "own.csv"), "--count", "30"])
    script.main()
    printed = capsys.readouterr().out
    assert "own.csv: 10.00% of the slots of human texts are errors" in printed
    assert "100.0% of 30 changed texts are found" in printed
    assert all(f"{name}: 100.0%; not found: none" in printed for name in script.CHANGES)
