"""Small files of runs that hold something else: one run is refused by name, a table goes on."""

import json
import math
import os
import warnings

import pytest

from vblora_lab.errors import DataError
from vblora_lab.runs import Result, Runs
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import RATES, RESULT, SETTINGS, TRACE
from vblora_lab.runs.trace_file import write_events

SETTINGS_OF_ALL = {"base": "mini-opt", "task": "restaurants", "steps": 4, "seed": 0}


@pytest.fixture
def runs(tmp_path):
    """Two runs: "good", and "odd", which the tests break."""
    for name, loss in (("good", 0.5), ("odd", 0.25)):
        folder = tmp_path / name
        folder.mkdir()
        write_events(folder / TRACE, [])
        (folder / SETTINGS).write_text(json.dumps(SETTINGS_OF_ALL))
        Runs(tmp_path).note(name, Result(10, 20, loss=loss))
    return Runs(tmp_path)


WRONG_RESULTS = [
    ([], r"holds \[\], where an object"),
    ([["trained_parameters", 1], ["stored_bytes", 2]], "where an object"),
    ("text", "where an object"),
    ({"loss": 0.5}, "Result has no trained_parameters"),
    ({"trained_parameters": "10", "stored_bytes": 2}, "trained_parameters='10'"),
    ({"trained_parameters": math.nan, "stored_bytes": 2}, "trained_parameters=nan"),
    ({"trained_parameters": 1.5, "stored_bytes": 2}, "trained_parameters=1.5"),
    ({"trained_parameters": 1, "stored_bytes": None}, "stored_bytes=None"),
    ({"trained_parameters": 1, "stored_bytes": 2, "bleu": "high"}, "bleu='high'"),
    ({"trained_parameters": 1, "stored_bytes": 2, "bleu": [1]}, r"bleu=\[1\]"),
    ({"trained_parameters": 1, "stored_bytes": 2, "loss": 10**400}, "loss=1000"),
    ({"trained_parameters": 1, "stored_bytes": 2, "mood": 1}, "a field 'mood'"),
]


@pytest.mark.parametrize(("facts", "message"), WRONG_RESULTS)
def test_a_wrong_result_is_named_and_the_table_has_what_the_trace_gives(runs, facts, message):
    (runs.folder / "odd" / RESULT).write_text(json.dumps(facts))
    with pytest.raises(DataError, match=rf"odd.result\.json .*{message}"):
        runs["odd"]
    with pytest.warns(UserWarning, match=rf"odd.result\.json .*{message}.*does without it"):
        table = runs.compare()
    assert list(table.results) == ["good", "odd"]
    assert table.results["odd"].trained_parameters == 0 and math.isnan(table.results["odd"].loss)
    assert "mini-opt" in str(table) and "0.500" in str(table)
    with pytest.warns(UserWarning, match="does without it"):
        assert "0.500" in runs._repr_html_()


@pytest.mark.parametrize("text", ["[]", '"steps"', "3", "null", "{", "[" * 100_000, "\udcff"])
def test_wrong_settings_are_named_and_the_table_has_the_run(runs, text):
    (runs.folder / "odd" / SETTINGS).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"odd.run\.json"):
        runs["odd"]
    with pytest.warns(UserWarning, match=r"odd.run\.json .*does without it"):
        table = runs.compare()
    assert list(table.results) == ["good", "odd"] and table.results["odd"].loss == 0.25
    assert table.caption == "", "nobody knows what they have in common"


@pytest.mark.parametrize("value", [math.nan, [1], {"a": 1}, None, "many"])
def test_settings_of_odd_values_are_shown_as_they_are(runs, value):
    for name in runs:
        (runs.folder / name / SETTINGS).write_text(json.dumps(SETTINGS_OF_ALL | {"steps": value}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "mini-opt" in str(runs.compare()) and "mini-opt" in runs._repr_html_()


def test_a_run_without_a_trace_is_left_out(runs):
    (runs.folder / "odd" / TRACE).write_text("not mine")
    with pytest.raises(DataError, match=r"odd.run\.trace is not a trace"):
        runs["odd"]
    with pytest.warns(UserWarning, match=r"odd.run\.trace is not a trace.*does without it"):
        assert list(runs.compare().results) == ["good"]
    assert list(runs) == ["good", "odd"], "it is listed, so that it can be looked at"


def test_an_unknown_name_is_no_broken_file(runs):
    with pytest.raises(DataError, match="did you mean 'good'"):
        runs.compare(["goodd"])


def test_what_was_not_measured_is_no_damage(runs):
    runs.note("odd", Result(1, 2))
    assert math.isnan(runs["odd"].result.loss)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [RESULT, SETTINGS, TRACE])
def test_a_pipe_is_not_waited_for(runs, name):
    (runs.folder / "odd" / name).unlink()
    os.mkfifo(runs.folder / "odd" / name)
    with pytest.raises(DataError, match=f"{name} .*no file"):
        runs["odd"]
    with pytest.warns(UserWarning, match=f"{name} .*no file"):
        assert "good" in runs.compare().results


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ([], "where an object"),
        ({"soon": {"bank": 1.0}}, "'soon'"),
        ({"-1": {"bank": 1.0}}, "'-1'"),
        ({"9" * 5000: {"bank": 1.0}}, "'999"),
        ({"3": [1.0]}, r"'3': \[1.0\]"),
        ({"3": {"bank": "fast"}}, "'3': {'bank': 'fast'}"),
        ({"3": {"bank": math.nan}}, "'3': {'bank': nan}"),
        ({"3": {"bank": -1.0}}, "'3': {'bank': -1.0}"),
    ],
)
def test_wrong_rates_are_named(tmp_path, noted, message):
    (tmp_path / RATES).write_text(json.dumps(noted))
    with pytest.raises(DataError, match=rf"rates\.json .*{message}"):
        RunFolder(tmp_path).rates()


def test_rates_are_in_the_order_of_their_steps(tmp_path):
    (tmp_path / RATES).write_text(json.dumps({"10": {"bank": 1.0}, "9": {"bank": 2}}))
    assert list(RunFolder(tmp_path).rates()) == [9, 10]
