"""Traces, changed at random, checksums made right again: what comes before the damage is read."""

import functools
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.amount import cases
from vblora_lab.errors import DataError
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.runs.events import Evaluated, Finished, Sample, Sampled, Selected, Started, Stepped
from vblora_lab.runs.trace import Trace
from vblora_lab.runs.trace_records import HEADER, _pack_record, records

MOST = 128 * 2**20  # bytes that reading a small file may take


@functools.cache
def whole():
    """The bytes of a trace with an event of each kind."""
    n = np.arange(6, dtype=np.int32)
    where = SubVectors(
        modules=("layers.0.q_proj", "layers.1.q_proj"), module=n % 2, layer=n % 2,
        matrix=np.where(n < 3, "A", "B"), rank=n % 3, tile=n * 0,
    )  # fmt: skip
    indices = np.stack([n, n[::-1]], 1)
    rates = {"bank": 0.1}
    events = [
        Started(2, where, 8, 2, 1, 1, 1, 0, "mini-opt"),
        Selected(0, Selection(where, 8, indices, np.full((6, 2), 0.5, np.float32))),
        Sampled(0, (Sample("name[A]", "A.", "A", ("area is missing",)),)),
        Stepped(1, 2, 2.5, rates, 10.0, 2.0, 0.5, 0.5),
        Evaluated(1, 2.25),
        Stepped(2, 2, 2.0, rates, 10.0, 2.0, 0.0, 1.0, 1000),
        Selected(2, Selection(where, 8, indices[::-1].copy(), np.full((6, 2), 0.5, np.float32))),
        Finished("completed", 2, 1.0),
    ]
    with tempfile.TemporaryDirectory() as folder:
        Trace(tuple(events)).save(Path(folder) / "run.trace")
        return (Path(folder) / "run.trace").read_bytes()


def reads_or_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.trace"
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trace = Trace.load(path)
        except DataError:
            return
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MOST
        for _, selection in trace.selections:
            assert selection.indices.max(initial=0) < selection.num_vectors
            assert np.isfinite(selection.weights).all()
            names, block = selection.sub_vectors.blocks
            assert block.max(initial=-1) < len(names)
            assert all(selection.sub_vectors.label(i) for i in range(len(selection.indices)))
        assert len(trace.losses) == len(trace.steps)
        assert len(trace.eval_losses) == len(trace.eval_steps)
        assert isinstance(trace.reason, str) and isinstance(trace.samples_after, tuple)
        trace.save(path)
        assert len(Trace.load(path).events) == len(trace.events)


def test_what_is_changed_is_whole(tmp_path):
    (tmp_path / "run.trace").write_bytes(whole())
    trace = Trace.load(tmp_path / "run.trace")
    assert len(trace.events) == 8 and len(trace.selections) == 2 and trace.reason == "completed"


@cases(60, share=0.06)
@given(st.integers(0), st.binary(min_size=1, max_size=6), st.booleans())
def test_other_bytes(place, new, cut):
    data = whole()
    place %= len(data)
    reads_or_is_refused(data[:place] + new + (b"" if cut else data[place + len(new) :]))


@cases(60, share=0.06)
@given(st.integers(0), st.integers(0), st.binary(min_size=1, max_size=8), st.integers(0, 3))
def test_other_contents_with_right_checksums(which, place, new, how):
    found = list(records(whole()))
    which %= len(found)
    record = found[which]
    payload = record.payload
    place %= max(1, len(payload))
    payload = (
        payload[:place] + new + payload[place + len(new) :],
        payload[:place] + new + payload[place:],
        payload[:place],
        new * 50,
    )[how]
    changed = _pack_record(record.kind, payload)
    rest = [whole()[r.start : r.end] for r in found]
    reads_or_is_refused(HEADER + b"".join([*rest[:which], changed, *rest[which + 1 :]]))


@cases(20, share=0.03)
@given(st.lists(st.integers(0, 8), max_size=12))
def test_records_in_any_order(order):
    rest = [whole()[r.start : r.end] for r in records(whole())]
    reads_or_is_refused(HEADER + b"".join(rest[number % len(rest)] for number in order))
