"""Traces whose checksums are right and whose contents are not: damage, found at little cost."""

import dataclasses
import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from typing import get_args

import numpy as np
import pytest

from vblora_lab.errors import DataError
from vblora_lab.inspection.selection import SubVectors
from vblora_lab.runs import DamagedTrace, Event, Sample, Started, Stepped, Trace
from vblora_lab.runs.fields import _TYPES
from vblora_lab.runs.trace_file import TraceWriter
from vblora_lab.runs.trace_records import HEADER

RATES = {"bank": 1e-3}
NUMBERS = np.arange(4, dtype=np.int32)
WHERE = SubVectors(
    ("layers.0.q", "layers.0.v"), NUMBERS % 2, 0 * NUMBERS, np.array(list("ABAB")), 0 * NUMBERS,
    NUMBERS,
)  # fmt: skip


def record(kind, payload):
    start = struct.pack("<cI", kind, len(payload))
    return start + struct.pack("<I", zlib.crc32(payload, zlib.crc32(start))) + payload


def event(**facts):
    return record(b"J", json.dumps(facts).encode())


def stepped(after, **changed):
    facts = {
        "event": "Stepped", "step": after, "total_steps": 9, "loss": 1.5, "learning_rates": RATES,
        "tokens_per_second": 1.0, "steps_per_second": 2.0, "eta_seconds": 3.0, "seconds": 4.0,
    }  # fmt: skip
    return event(**{k: v for k, v in (facts | changed).items() if v != "missing"})


def coordinates(names=("module", "layer", "rank", "tile"), **changed):
    arrays = {"modules": np.array(WHERE.modules), "matrix": WHERE.matrix}
    arrays |= {name: getattr(WHERE, name) for name in names} | changed
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return record(b"C", file.getvalue())


def header(shape, descr="<i4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def zipped(compression=zipfile.ZIP_DEFLATED, **members):
    file = io.BytesIO()
    arrays = {f.name: np.array(getattr(WHERE, f.name)) for f in dataclasses.fields(WHERE)}
    with zipfile.ZipFile(file, "w", compression, compresslevel=9) as archive:
        for name, array in arrays.items():
            inner = io.BytesIO()
            np.save(inner, array)
            archive.writestr(f"{name}.npy", members.get(name, inner.getvalue()))
    return record(b"C", file.getvalue())


def selection(step=2, num_vectors=8, rows=4, k=2, indices=None, weights=None, more=b""):
    indices = np.zeros((4, 2), "u1") if indices is None else indices
    weights = np.full((4, 2), 0.5, "<f2") if weights is None else weights
    shape = struct.pack("<4I", step, num_vectors, rows, k)
    return record(b"S", shape + indices.tobytes() + weights.tobytes() + more)


def written(tmp_path, *records):
    """A file with a step that is whole, and then these records."""
    path = tmp_path / "run.trace"
    path.write_bytes(HEADER + stepped(1) + b"".join(records))
    return path


def assert_damage(path, message):
    with pytest.warns(DamagedTrace) as caught:
        trace = Trace.load(path)
    (warning,) = caught
    start = len(HEADER + stepped(1))
    text = str(warning.message)
    assert message in text and "run.trace is damaged in the record at byte" in text, text
    assert int(text.split("at byte ")[1].split(":")[0].replace(",", "")) >= start
    assert text.endswith("read up to step 1")
    assert trace.steps.tolist() == [1], "what came before is kept"


# --- records that are no events


@pytest.mark.parametrize("value", [[1], [], 3, 1.5, "Stepped", None, True, {"event": 3}, {}])
def test_a_record_that_is_no_object_is_damage(tmp_path, value):
    path = written(tmp_path, record(b"J", json.dumps(value).encode()), stepped(2))
    assert_damage(path, "where an event, an object, belongs")


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"\xff\xfe\xfd", b"[" * 200_000, b"1" * 10_000], ids=lambda p: p[:4]
)
def test_a_record_that_is_no_json_is_damage(tmp_path, payload):
    assert_damage(written(tmp_path, record(b"J", payload), stepped(2)), "")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "missing"}, "Stepped has no loss"),
        ({"mood": 1}, "Stepped has a field 'mood'"),
        ({"loss": "1.5"}, "Stepped has loss='1.5'; allowed: a number"),
        ({"loss": None}, "loss=None"),
        ({"loss": 10**400}, "loss=1000"),
        ({"step": -1}, "step=-1"),
        ({"step": 1.0}, "step=1.0; allowed: 0 to 2,147,483,647"),
        ({"step": 2**31}, "step=2147483648"),
        ({"step": True}, "step=True"),
        ({"total_steps": 2**31}, "total_steps=2147483648"),
        ({"learning_rates": [1]}, "learning_rates=[1]; allowed: an object of numbers"),
        ({"learning_rates": {"bank": "fast"}}, "learning_rates="),
        ({"peak_memory_bytes": 1.5}, "peak_memory_bytes=1.5; allowed: a whole number"),
    ],
)
def test_fields_that_no_step_has_are_damage(tmp_path, changed, message):
    assert_damage(written(tmp_path, stepped(2, **changed), stepped(3)), message)


SAMPLE = {"mr": "a", "reference": "b", "text": "c", "slot_errors": []}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"event": "Sampled", "step": 1}, "samples=None; allowed: a list"),
        ({"event": "Sampled", "step": 1, "samples": ["a"]}, "'a' stands where Sample"),
        ({"event": "Sampled", "step": 1, "samples": [{"mr": "a"}]}, "Sample has no reference"),
        ({"event": "Sampled", "step": 1, "samples": [SAMPLE | {"x": 1}]}, "a field 'x'"),
        ({"event": "Sampled", "step": 1, "samples": [SAMPLE | {"text": 1}]}, "text=1"),
        ({"event": "Sampled", "step": 1, "samples": [SAMPLE | {"slot_errors": [1]}]}, "[1]"),
        ({"event": "Finished", "reason": "bored", "step": 1, "seconds": 1.0}, "reason='bored'"),
        ({"event": "Finished", "reason": [], "step": 1, "seconds": 1.0}, "reason=[]"),
        (
            {"event": "Finished", "reason": "failed", "step": 1, "seconds": 1.0, "error": 3},
            "error=3",
        ),
        ({"event": "Saved", "step": 1, "folder": None}, "folder=None; allowed: a text"),
        ({"event": "Selected", "step": 1, "selection": 1}, "a record of another kind"),
        ({"event": "Started"}, "Started has no coordinates"),
    ],
)
def test_fields_that_no_other_event_has_are_damage(tmp_path, facts, message):
    assert_damage(written(tmp_path, event(**facts), stepped(2)), message)


def test_messages_stay_short(tmp_path):
    path = written(tmp_path, stepped(2, loss="x" * 1_000_000))
    with pytest.warns(DamagedTrace) as caught:
        Trace.load(path)
    assert len(str(caught[0].message)) < 1000


def test_every_field_of_every_event_has_a_check():
    apart = {"SubVectors", "Selection", "tuple[Sample, ...]", "BaseException | None"}
    annotations = {f.type for kind in (*get_args(Event), Sample) for f in dataclasses.fields(kind)}
    assert annotations <= _TYPES.keys() | apart


def test_kinds_of_a_later_version_are_passed_over(tmp_path):
    records = [record(b"X", b"anything"), event(event="Dreamt", step=2, of="sheep"), stepped(2)]
    assert Trace.load(written(tmp_path, *records)).steps.tolist() == [1, 2]


# --- selections


def test_a_selection_that_is_as_it_should_be_is_read(tmp_path):
    trace = Trace.load(written(tmp_path, coordinates(), selection(), stepped(2)))
    (step, chosen), *_ = trace.selections
    assert step == 2 and chosen.indices.shape == chosen.weights.shape == (4, 2)
    assert chosen.sub_vectors.modules == WHERE.modules


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 2**32 - 1}, "a selection at step 2 without its coordinates"),
        ({"k": 2**32 - 1}, "claims 4 x 4,294,967,295 choices"),
        ({"k": 3}, "claims 4 x 3 choices"),
        ({"more": b"\0"}, "claims 4 x 2 choices and has others"),
        ({"step": 2**31}, "a selection at step 2,147,483,648"),
        ({"num_vectors": 2**32 - 1}, "from 4,294,967,295 vectors"),
        ({"num_vectors": 0}, "vector 0 of a bank of 0"),
        ({"indices": np.full((4, 2), 8, "u1")}, "has vector 8 of a bank of 8"),
        ({"weights": np.full((4, 2), np.nan, "<f2")}, "weights that are not from 0 to 1"),
        ({"weights": np.full((4, 2), np.inf, "<f2")}, "weights that are not from 0 to 1"),
        ({"weights": np.full((4, 2), -0.5, "<f2")}, "weights that are not from 0 to 1"),
    ],
)
def test_a_selection_that_no_adapter_can_have_made_is_damage(tmp_path, changed, message):
    path = written(tmp_path, coordinates(), selection(**changed), stepped(2))
    assert_damage(path, message)


def test_a_selection_too_short_for_its_shape_is_damage(tmp_path):
    assert_damage(written(tmp_path, coordinates(), record(b"S", b"\0" * 15)), "15 bytes")


# --- coordinates


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer": NUMBERS[:3]}, "4 module and 3 layer"),
        ({"matrix": np.array(["A"])}, "4 module and 1 matrix"),
        ({"module": NUMBERS}, "point to module 3 of 2"),
        ({"module": NUMBERS - 1}, "module must be whole numbers from 0"),
        ({"rank": NUMBERS - 1}, "rank must be whole numbers"),
        ({"tile": NUMBERS.astype("<i8") + 2**31}, "tile must be whole numbers"),
        ({"tile": NUMBERS + 0.5}, "tile must be whole numbers"),
        ({"matrix": np.array(list("ABCD"))}, "a matrix other than A and B"),
        ({"matrix": NUMBERS}, "a matrix other than A and B"),
        ({"modules": NUMBERS}, "modules are no texts"),
        ({"layer": NUMBERS.reshape(2, 2)}, "no list of numbers"),
        ({"names": ("module", "layer", "rank")}, "they must hold modules, module"),
        ({"more": NUMBERS}, "they must hold modules, module"),
        ({"modules": np.array([{}, []], object)}, "no list of numbers"),
    ],
)
def test_coordinates_that_don_t_belong_together_are_damage(tmp_path, changed, message):
    assert_damage(written(tmp_path, coordinates(**changed), selection(), stepped(2)), message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"module": header((2**28,)) + b"\0" * 16}, "claims 268,435,456 entries"),
        ({"module": header((2**62,))}, "entries and has others"),
        ({"modules": header((2**40,), "<U0")}, "no list of numbers or texts"),
        ({"module": header((4,), "|O") + b"\0" * 32}, "no list of numbers"),
        ({"module": b"\x93NUMPY\x03\x00" + b"\0" * 20}, "no array of a known kind"),
        ({"module": b"no array"}, "can't be read"),
        ({"module": b"\x93NUMPY\x01\x00\x05\x00((((("}, "can't be read"),
        ({"compression": zipfile.ZIP_BZIP2}, "compressed in an unknown way"),
    ],
)
def test_arrays_that_claim_what_they_have_not_are_damage(tmp_path, members, message):
    assert_damage(written(tmp_path, zipped(**members), selection(), stepped(2)), message)


def bomb(entries):
    """Coordinates that are right in all but their size."""
    zeros = np.zeros(entries, np.int32)
    return coordinates(
        module=zeros, layer=zeros, rank=zeros, tile=zeros, matrix=np.full(entries, "A")
    )


def lying_bomb():
    """An archive whose directory says that a member is small, and which isn't."""
    large, file = header((4,)) + b"\0" * 300_000_000, io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("modules", "module", "layer", "matrix", "rank", "tile"):
            archive.writestr(f"{name}.npy", large if name == "module" else b"")
            archive.filelist[-1].file_size = 144  # which is what its directory then says
    return record(b"C", file.getvalue())


def many_names():
    count = 4_000_000
    return coordinates(modules=np.full(count, "\u4e00"))


@pytest.mark.parametrize(
    "make", [lambda: bomb(20_000_000), lambda: bomb(4_000_000), lying_bomb, many_names],
    ids=["bomb", "smaller bomb", "lying bomb", "many names"],
)  # fmt: skip
def test_reading_takes_little_memory_whatever_a_file_claims(tmp_path, make):
    path = written(tmp_path, make(), stepped(2))
    size = path.stat().st_size
    assert size < 2_000_000
    tracemalloc.start()
    try:
        with pytest.warns(DamagedTrace, match=r"can't be read"):
            Trace.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**27 + 16 * size
    finally:
        tracemalloc.stop()


def test_many_coordinates_share_one_limit(tmp_path):
    """Each would be allowed alone, and each could be held by an event."""
    started = {
        "event": "Started", "total_steps": 1, "num_vectors": 1, "topk": 1,
        "trained_parameters": 1, "stored_bytes": 1, "lora_stored_bytes": 1,
    }  # fmt: skip
    parts = [part for n in range(20) for part in (bomb(600_000 + n), event(**started))]
    with pytest.warns(DamagedTrace, match="more memory than a trace of this size can need"):
        trace = Trace.load(written(tmp_path, *parts))
    kept = [len(event.sub_vectors) for event in trace.events if isinstance(event, Started)]
    assert sum(kept) * 20 < 2**27


def test_coordinates_that_are_written_again_count_once(tmp_path):
    parts = [part for step in range(2, 30) for part in (bomb(600_000), stepped(step))]
    trace = Trace.load(written(tmp_path, *parts))
    assert trace.steps.tolist() == list(range(1, 30))


@pytest.mark.filterwarnings("ignore::vblora_lab.runs.DamagedTrace")
def test_whatever_stands_for_coordinates_raises_nothing_else(tmp_path):
    whole = coordinates()[9:]
    rng = np.random.default_rng(0)
    read = 0
    for at in range(len(whole)):
        payload = bytearray(whole)
        payload[at] = int(rng.integers(256))
        trace = Trace.load(written(tmp_path, record(b"C", bytes(payload)), selection(), stepped(2)))
        assert trace.steps.tolist() in ([1], [1, 2])
        read += len(trace.selections)
    assert read < len(whole) / 2


# --- what else reads traces


def test_a_run_goes_on_before_the_damage(tmp_path):
    path = written(tmp_path, record(b"J", b"[]"), stepped(2))
    writer = TraceWriter(path, resume_from=1)
    with pytest.warns(DamagedTrace, match="goes on from there"):
        writer(Stepped(2, 9, 1.0, RATES, 1.0, 1.0, 1.0, 1.0))
    assert Trace.load(path).steps.tolist() == [1, 2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.trace")
    with pytest.raises(DataError, match=r"run\.trace is not a trace .*no file"):
        Trace.load(tmp_path / "run.trace")
    with pytest.raises(DataError, match="no file"):
        TraceWriter(tmp_path / "run.trace")
