"""Folders of runs whose small files hold anything: named, shown, and never more than that."""

import functools
import json
import tempfile
import warnings
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.amount import cases
from tests.fuzz.test_fuzz_traces import whole
from vblora_lab.errors import DataError
from vblora_lab.runs import Runs

SMALL = ["run.json", "result.json", "rates.json"]
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KNOWN = [
    "trained_parameters",
    "stored_bytes",
    "loss",
    "bleu",
    "slot_error_rate",
    "base",
    "task",
    "0",
]


def folder_of(parent, files):
    run = Path(parent) / "run"
    run.mkdir()
    (run / "run.trace").write_bytes(whole())
    for name, contents in files.items():
        (run / name).write_bytes(contents)
    return run


def shows(parent, files):
    run = folder_of(parent, files)
    before = {path: path.read_bytes() for path in run.iterdir()}
    runs = Runs(parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(runs) == ["run"]
        str(runs), runs._repr_html_()
        table = runs.compare()
        str(table), table._repr_html_()
        try:
            runs["run"]
        except DataError as error:
            assert "run" in str(error)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@cases(40, share=0.03)
@given(
    st.dictionaries(
        st.sampled_from(SMALL), st.one_of(values, st.dictionaries(st.sampled_from(KNOWN), values))
    )
)
def test_any_json(files):
    with tempfile.TemporaryDirectory() as parent:
        shows(parent, {name: json.dumps(value).encode() for name, value in files.items()})


@cases(30, share=0.02)
@given(st.dictionaries(st.sampled_from(SMALL), st.binary(max_size=20)))
def test_any_bytes(files):
    with tempfile.TemporaryDirectory() as parent:
        shows(parent, files)


@functools.cache
def deep():
    return b"[" * 100_000


def test_json_that_is_deep():
    with tempfile.TemporaryDirectory() as parent:
        shows(parent, dict.fromkeys(SMALL, deep()))
