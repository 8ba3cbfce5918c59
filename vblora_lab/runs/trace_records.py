"""The bytes of a trace file: how each event becomes records, and how records become events.

Layout, little-endian: ``b"VBLTRACE"`` and a version (uint16), then records, one after the other::

    kind      1 byte   b"J" an event, b"C" coordinates, b"S" a selection
    length    uint32   bytes of the payload
    checksum  uint32   crc32 of kind, length and payload
    payload            J  JSON: {"event": its class, and its fields}
                       C  .npz of the fields of `SubVectors`, for the records that follow
                       S  step, num_vectors, N, k (4 x uint32),
                          indices (N, k) in the smallest unsigned integer that holds them,
                          weights (N, k) float16

A step of 576 sub-vectors with k=2 out of 256 takes 3.5 kB, and about 0.3 kB for its loss and speed.
Reading needs numpy alone, and a small multiple of the file's size in memory: a checksum says that
the bytes are those that were written, not that they were written by a friend.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from vblora_lab.errors import DataError, SessionError
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.runs.events import Event, Finished, Sample, Sampled, Selected, Started
from vblora_lab.runs.fields import LARGEST_STEP, WrongField, built, is_whole, shown
from vblora_lab.runs.trace_coordinates import CoordinatesReader, pack_coordinates

VERSION = 1
_MAGIC = b"VBLTRACE"
_HEADER = struct.Struct("<8sH")
_RECORD = struct.Struct("<cI")
_CHECKSUM = struct.Struct("<I")
_SHAPE = struct.Struct("<4I")
_EVENTS = {kind.__name__: kind for kind in get_args(Event)}

HEADER = _HEADER.pack(_MAGIC, VERSION)
"""What a trace file begins with."""


class Damage(Exception):
    """Where and how a file stops being a trace."""


class Record(NamedTuple):
    """A record of a file: what it holds, and where it starts and ends, in bytes."""

    kind: bytes
    payload: bytes
    start: int
    end: int


class Unpacked(NamedTuple):
    """What a record holds.

    Attributes:
        record: that it is from.
        event: None for coordinates, and for kinds that are not known here.
        step: of which it says something; 0 where that can't be known.
    """

    record: Record
    event: Event | None
    step: int


# --- writing


def pack(event: Event, known: SubVectors | None) -> tuple[bytes, SubVectors | None]:
    """The bytes of an event, and the coordinates that hold for the records after it.

    known: the coordinates that hold so far. Those of the event are written before it if they are
    others.
    """
    where = _sub_vectors(event)
    if where is None or _same(where, known):
        return _pack_event(event), known
    return _pack_record(b"C", pack_coordinates(where)) + _pack_event(event), where


def _sub_vectors(event: Event) -> SubVectors | None:
    if isinstance(event, Selected):
        return event.selection.sub_vectors
    return event.sub_vectors if isinstance(event, Started) else None


def _same(one: SubVectors, other: SubVectors | None) -> bool:
    return one is other or (
        other is not None
        and all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    )


def _pack_event(event: Event) -> bytes:
    if isinstance(event, Selected):
        return _pack_selection(event.step, event.selection)
    facts = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "sub_vectors"}
    text = json.dumps({"event": type(event).__name__, **facts}, default=_plain)
    return _pack_record(b"J", text.encode())


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, np.generic):
        return value.item()
    # The exception that ended a run. One that was read from a trace has its kind in its text.
    return str(value) if isinstance(value, SessionError) else f"{type(value).__name__}: {value}"


def _pack_selection(step: int, selection: Selection) -> bytes:
    indices = selection.indices.astype(_index_type(selection.num_vectors))
    weights = selection.weights.astype("<f2")
    shape = _SHAPE.pack(step, selection.num_vectors, *indices.shape)
    return _pack_record(b"S", shape + indices.tobytes() + weights.tobytes())


def _index_type(num_vectors: int) -> np.dtype:
    return np.min_scalar_type(max(num_vectors - 1, 0)).newbyteorder("<")


def _pack_record(kind: bytes, payload: bytes) -> bytes:
    start = _RECORD.pack(kind, len(payload))
    return start + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(start))) + payload


# --- reading


def check_header(path: Path, data: bytes) -> None:
    """Raise `DataError` for the bytes of another kind of file, or of a newer version."""
    if not data.startswith(_MAGIC) and not _MAGIC.startswith(data):
        raise DataError(f"{path} is not a trace: it doesn't begin with {_MAGIC.decode()}")
    if len(data) >= _HEADER.size:
        _, version = _HEADER.unpack_from(data)
        if version != VERSION:
            raise DataError(
                f"{path} is a trace of version {version}; this vblora_lab reads version {VERSION}"
            )


def records(data: bytes) -> Iterator[Record]:
    """The whole records of a file, in order; raises `Damage` at the first that is not whole."""
    if len(data) < _HEADER.size:
        raise Damage(f"ends within its header, after {len(data)} bytes")
    start = _HEADER.size
    head = _RECORD.size + _CHECKSUM.size
    while start < len(data):
        if start + head > len(data):
            raise Damage(f"ends within a record, at byte {len(data):,}")
        kind, length = _RECORD.unpack_from(data, start)
        (checksum,) = _CHECKSUM.unpack_from(data, start + _RECORD.size)
        end = start + head + length
        payload = data[start + head : end]
        if len(payload) < length:
            raise Damage(f"ends within a record, or is damaged, at byte {start:,}")
        if zlib.crc32(payload, zlib.crc32(data[start : start + _RECORD.size])) != checksum:
            raise Damage(f"is damaged in the record at byte {start:,}: its checksum is wrong")
        yield Record(kind, payload, start, end)
        start = end


def unpack(data: bytes) -> Iterator[Unpacked]:
    """What the records of a file hold, in order.

    Raises `Damage` at the first record that is not whole, or whose contents no run can have said.
    """
    coordinates = CoordinatesReader(len(data))
    where: SubVectors | None = None
    for record in records(data):
        try:
            if record.kind == b"C":
                where = coordinates.read(record.payload)
                unpacked = Unpacked(record, None, 0)
            elif record.kind == b"S":
                selected = _selected(record.payload, where)
                unpacked = Unpacked(record, selected, selected.step)
            elif record.kind == b"J":
                unpacked = Unpacked(record, *_event(record.payload, where))
            else:
                unpacked = Unpacked(record, None, 0)
        except (ValueError, RecursionError) as error:
            raise Damage(f"is damaged in the record at byte {record.start:,}: {error}") from error
        yield unpacked


def _selected(payload: bytes, where: SubVectors | None) -> Selected:
    """Raises `ValueError` for a selection that no adapter can have made."""
    if len(payload) < _SHAPE.size:
        raise ValueError(f"a selection of {len(payload)} bytes has no shape")
    step, num_vectors, rows, k = _SHAPE.unpack_from(payload)
    if where is None or len(where) != rows:
        raise ValueError(f"it has a selection at step {step} without its coordinates")
    if step > LARGEST_STEP or num_vectors > LARGEST_STEP:
        raise ValueError(f"it has a selection at step {step:,} from {num_vectors:,} vectors")
    kind = _index_type(num_vectors)
    if len(payload) != _SHAPE.size + rows * k * (kind.itemsize + 2):
        raise ValueError(
            f"the selection at step {step} claims {rows:,} x {k:,} choices and has others"
        )
    indices = np.frombuffer(payload, kind, rows * k, _SHAPE.size)
    weights = np.frombuffer(payload, "<f2", rows * k, _SHAPE.size + indices.nbytes)
    if indices.size and indices.max() >= num_vectors:
        raise ValueError(
            f"the selection at step {step} has vector {indices.max()} of a bank of {num_vectors:,}"
        )
    if not ((weights >= 0) & (weights <= 1)).all():  # NaN is neither
        raise ValueError(f"the selection at step {step} has weights that are not from 0 to 1")
    return Selected(
        step,
        Selection(
            where,
            num_vectors,
            indices.reshape(rows, k).astype(np.int32),
            weights.reshape(rows, k).astype(np.float32),
        ),
    )


def _event(payload: bytes, where: SubVectors | None) -> tuple[Event | None, int]:
    """The event of a record, None where its kind is not known here; and its step.

    Raises `ValueError` for what is no event.
    """
    facts = json.loads(payload)
    if not isinstance(facts, dict) or not isinstance(facts.get("event"), str):
        raise WrongField(f"{shown(facts)} stands where an event, an object, belongs")
    kind = _EVENTS.get(facts.pop("event"))
    if kind is None:
        step: int = facts.get("step", 0)
        return None, step if is_whole(step, LARGEST_STEP) else 0
    event: Event = built(kind, facts, **_given(kind, facts, where))
    return event, event.step


def _given(kind: type, facts: dict[str, Any], where: SubVectors | None) -> dict[str, Any]:
    """Fields of an event that are not in JSON as they are; taken out of ``facts``."""
    if kind is Selected:
        raise WrongField("a selection stands in a record of another kind")
    if kind is Started:
        if where is None:
            raise WrongField("Started has no coordinates before it")
        return {"sub_vectors": where}
    if kind is Sampled:
        samples = facts.pop("samples", None)
        if not isinstance(samples, list):
            raise WrongField(f"Sampled has samples={shown(samples)}; allowed: a list")
        return {"samples": tuple(built(Sample, sample) for sample in samples)}
    if kind is Finished:
        error = facts.pop("error", None)
        if not isinstance(error, str | None):
            raise WrongField(f"Finished has error={shown(error)}; allowed: a text, or null")
        return {"error": None if error is None else SessionError(error)}
    return {}
