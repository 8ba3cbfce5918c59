"""The E2E data set from the hub, with a `datasets` library that has it, or can't have it."""

import sys
from types import SimpleNamespace

import pytest

from vblora_lab.data import load_task
from vblora_lab.data.e2e import DATA_SET, examples_of
from vblora_lab.errors import DataError


def rows(*pairs):
    return [{"meaning_representation": mr, "human_reference": text} for mr, text in pairs]


def test_hub_rows_become_examples():
    one, two = examples_of(
        rows(
            ("name[A], food[Thai]", "A is Thai."),
            ("food[Thai], name[A]", "Thai food at A."),
            ("name[B]", "B."),
        )
    )
    assert one.references == ("A is Thai.", "Thai food at A.") and two.mr == "name[B]"


def test_the_splits_of_the_challenge_stay(monkeypatch):
    splits = {
        name: rows((f"name[{name}]", f"This is {name}."))
        for name in ("train", "validation", "test")
    }
    asked = []

    def load_dataset(name, revision):
        asked.append((name, revision))
        return splits

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = load_task("e2e")
    assert asked == [(DATA_SET, "refs/convert/parquet")]
    assert task.name == "e2e" and task.domain.name == "restaurants"
    for name in splits:
        (example,) = getattr(task, name)
        assert example.facts == {"name": name} and example.references == (f"This is {name}.",)


def test_without_library_or_hub_it_says_what_to_do(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("the hub is out of reach")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"out of reach.*'restaurants'"):
        load_task("e2e")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="`datasets` library is not installed"):
        load_task("e2e")
