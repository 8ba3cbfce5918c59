"""A trace that an earlier layout of the package wrote says the same as it did then.

``data/three-steps.trace`` is a run of three steps on mini-opt that holds an event of every kind;
the file beside it is what the package of that time read from it.
"""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from vblora_lab import Selection, SubVectors, Trace
from vblora_lab.runs import Event

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def trace():
    return Trace.load(DATA / "three-steps.trace")


@pytest.fixture(scope="module")
def expected():
    return json.loads((DATA / "three-steps.json").read_text(encoding="utf-8"))


def plain(value):
    """As JSON has it: arrays and tuples as lists, errors as their text."""
    match value:
        case np.ndarray():
            return value.tolist()
        case tuple():
            return [plain(inner) for inner in value]
        case Selection():
            return {
                name: plain(getattr(value, name)) for name in ("num_vectors", "indices", "weights")
            }
        case BaseException():
            return str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def test_every_event_is_as_it_was_told(trace, expected):
    told = [{"event": type(event).__name__, **plain(event)} for event in trace.events]
    assert told == expected["events"]
    kinds = {kind.__name__ for kind in get_args(Event)} - {"Working"}  # no trace has these
    assert {row["event"] for row in told} == kinds


def test_the_arrays_are_those_of_then(trace, expected):
    for name in ("steps", "losses", "eval_steps", "eval_losses"):
        assert getattr(trace, name).tolist() == expected[name]
    for _, selection in trace.selections:
        assert isinstance(selection.sub_vectors, SubVectors)
        assert plain(selection.sub_vectors) == expected["events"][0]["sub_vectors"]
