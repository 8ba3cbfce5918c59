"""Many users: what a style is, how it is measured, and the whole road in small."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "many_users.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("many_users", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_text_in_a_style_has_all_of_it_and_less_of_any_other(script):
    users, facts = script.styles(100, seed=0), script.facts_for(3, seed=0)
    assert len({(style.greeting, style.farewell) for style in users}) == 100
    for each in facts:
        for i, style in enumerate(users):
            text = style.text(each)
            assert style.share(text, each) == 1
            assert all(other.share(text, each) < 1 for other in users[:i] + users[i + 1 :])
    assert users[0].share("", facts[0]) == 0


def test_a_style_is_measured_mark_by_mark(script):
    style = script.Style("Hello!", "Bye for now.", {"food": "Menu", "area": "Where"}, 2)
    facts = {"name": "The Mill", "food": "Thai", "area": "riverside"}
    text = "Hello! The Mill. Menu: Thai. Where: riverside. Bye for now."
    assert style.text(facts) == text
    # Greeting, farewell, two fields, and that there are two.
    assert style.share(text.replace("Menu", "Food"), facts) == pytest.approx(4 / 5)
    assert style.share(text.replace("Menu: Thai. ", ""), facts) == pytest.approx(3 / 5)
    assert style.share(text.replace("Hello! ", ""), facts) == pytest.approx(4 / 5)


@pytest.mark.slow
def test_from_a_bank_to_texts_in_one_batch(script, tmp_path, capsys):
    sizes = {"users": 2, "founders": 1, "own-banks": 1, "texts": 16, "held-out": 1}
    steps = {"founder-steps": 2, "steps": 2, "seeds": 1}
    options = [f"--{name}={value}" for name, value in (sizes | steps).items()]
    assert script.main([*options, f"--out={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 1
    for each in found:
        assert 0 <= each["a stranger's style"] <= 1
        assert 0 < each["bytes of a user"] < 200_000
        # In memory: two users, one with a bank of its own, and two banks.
        assert each["bytes in memory"] > 2 * each["bytes of a bank"]
    printed = capsys.readouterr().out
    assert "user-1 wants" in printed and "over seeds" in printed
