"""Many users: the whole road in small."""

import json
from pathlib import Path

import pytest

from tests.course.notebook import script

PATH = Path(__file__).parents[2] / "examples" / "many_users.py"


@pytest.mark.slow
def test_from_a_bank_to_texts_in_one_batch(tmp_path, capsys):
    sizes = {"users": 2, "founders": 1, "own-banks": 1, "texts": 16, "held-out": 1}
    steps = {"founder-steps": 2, "steps": 2, "seeds": 1}
    options = [f"--{name}={value}" for name, value in (sizes | steps).items()]
    assert script(PATH).main([*options, f"--out={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 1
    for each in found:
        assert 0 <= each["a stranger's style"] <= 1
        assert 0 < each["bytes of a user"] < 200_000
        # In memory: two users, one with a bank of its own, and two banks.
        assert each["bytes in memory"] > 2 * each["bytes of a bank"]
    printed = capsys.readouterr().out
    assert "user-1 wants" in printed and "over seeds" in printed
