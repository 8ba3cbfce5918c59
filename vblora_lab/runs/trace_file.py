"""Events as a file that grows by one step at a time and survives whatever ends the run.

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
Reading needs numpy alone.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from vblora_lab.errors import DataError, SessionError
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.runs.events import Event, Finished, Sample, Selected, Started, Stepped

VERSION = 1
_MAGIC = b"VBLTRACE"
_HEADER = struct.Struct("<8sH")
_RECORD = struct.Struct("<cI")
_CHECKSUM = struct.Struct("<I")
_SHAPE = struct.Struct("<4I")
_EVENTS = {kind.__name__: kind for kind in get_args(Event)}


class DamagedTrace(UserWarning):
    """A trace file ends early or has changed bytes; what comes before them was read."""


# --- writing


class TraceWriter:
    """A listener that appends each event to a file and hands it to the system at once.

    Args:
        path: the file; made, with its folder, at the first event. A trace that is there already is
            replaced, unless the run goes on from it.
        resume_from: the step after which a resumed run goes on; by default the one that the first
            `Started` tells. What the file holds of later steps is cut off, and what it has of
            earlier ones is not written again.
        tell: gets a sentence if the disk is full or the folder can't be written; by default a
            warning tells it.

    Such a failure is told once, and its exception kept in `error`: the file ends with its last
    whole event, and training goes on. What found no room is written when there is room again.

    Raises `DataError` where path is a file of another kind; that is left as it is.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        resume_from: int | None = None,
        tell: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.path = Path(path)
        self.error: OSError | None = None
        self._tell = tell
        self._waiting: deque[Event] = deque()
        self._resume_from = resume_from
        self._begun = False
        self._where: SubVectors | None = None
        if self.path.exists():
            _check_header(self.path, _read(self.path))

    def __call__(self, event: Event) -> None:
        if self._resume_from is None and not self._begun and isinstance(event, Started):
            self._resume_from = event.step or None
        self._waiting.append(event)
        try:
            self._write_what_waits()
        except OSError as error:
            is_news, self.error = self.error is None, error
            if is_news:
                self._tell(f"the trace can't be written to {self.path}: {error}")
        else:
            self.error = None

    def _write_what_waits(self) -> None:
        if not self._begun:
            self._begin()
        while self._waiting:
            if not self._has(self._waiting[0]):
                self._append(self._waiting[0])
            self._waiting.popleft()

    def _has(self, event: Event) -> bool:
        """Whether the part of the run that the file keeps has told this event."""
        if self._resume_from is None or isinstance(event, Finished):
            return False
        step = getattr(event, "step", None)
        return step is not None and step <= self._resume_from

    def _begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._resume_from is not None and self.path.exists():
            end = _end_of_step(_read(self.path), self._resume_from)
        else:
            end = 0
        with open(self.path, "ab") as file:
            file.truncate(end)
        if not end:
            self._resume_from = None  # nothing of the run is kept, so all of it is to be told
            self._write(_HEADER.pack(_MAGIC, VERSION))
        self._begun = True

    def _append(self, event: Event) -> None:
        where = _sub_vectors(event)
        if where is None or _same(where, self._where):
            self._write(_pack(event))
        else:
            self._write(_pack_coordinates(where) + _pack(event))
            self._where = where

    def _write(self, data: bytes) -> None:
        """Append all of data or, where that fails, nothing."""
        # Opened for each event, so that no handle outlives a run, whatever ends it.
        with open(self.path, "ab", buffering=0) as file:
            start = file.seek(0, io.SEEK_END)
            try:
                written = file.write(data)
                if written != len(data):
                    raise OSError(f"only {written} of {len(data)} bytes found room")
            except OSError:
                file.truncate(start)
                raise


def write_events(path: str | Path, events: Iterable[Event]) -> None:
    """Write a whole file at once. Raises `OSError` where that is impossible."""
    parts = [_HEADER.pack(_MAGIC, VERSION)]
    known: SubVectors | None = None
    for event in events:
        where = _sub_vectors(event)
        if where is not None and not _same(where, known):
            parts.append(_pack_coordinates(where))
            known = where
        parts.append(_pack(event))
    Path(path).write_bytes(b"".join(parts))


def _sub_vectors(event: Event) -> SubVectors | None:
    if isinstance(event, Selected):
        return event.selection.sub_vectors
    return event.sub_vectors if isinstance(event, Started) else None


def _same(one: SubVectors, other: SubVectors | None) -> bool:
    return one is other or (
        other is not None
        and all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    )


def _pack(event: Event) -> bytes:
    if isinstance(event, Selected):
        return _pack_selection(event.step, event.selection)
    facts = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "sub_vectors"}
    text = json.dumps({"event": type(event).__name__, **facts}, default=_plain)
    return _record(b"J", text.encode())


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, np.generic):
        return value.item()
    return f"{type(value).__name__}: {value}"  # what ended a run


def _pack_coordinates(where: SubVectors) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = {f.name: np.array(getattr(where, f.name)) for f in fields(where)}
    np.savez_compressed(file, **arrays)
    return _record(b"C", file.getvalue())


def _pack_selection(step: int, selection: Selection) -> bytes:
    indices = selection.indices.astype(_index_type(selection.num_vectors))
    weights = selection.weights.astype("<f2")
    shape = _SHAPE.pack(step, selection.num_vectors, *indices.shape)
    return _record(b"S", shape + indices.tobytes() + weights.tobytes())


def _index_type(num_vectors: int) -> np.dtype:
    return np.min_scalar_type(max(num_vectors - 1, 0)).newbyteorder("<")


def _record(kind: bytes, payload: bytes) -> bytes:
    start = _RECORD.pack(kind, len(payload))
    return start + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(start))) + payload


# --- reading


class _Record(NamedTuple):
    kind: bytes
    payload: bytes
    start: int
    end: int


def read_events(path: str | Path) -> tuple[Event, ...]:
    """The events of a file, up to its last whole step; numpy is all that is needed.

    Warns with `DamagedTrace` where the file ends within a record or a checksum is wrong. Raises
    `DataError` where path is missing, is no trace, or has a newer version.
    """
    data = _read(Path(path))
    _check_header(Path(path), data)
    events: list[Event] = []
    where: SubVectors | None = None
    try:
        for record in _records(data):
            if record.kind == b"C":
                where = _coordinates(record.payload)
            elif record.kind == b"S":
                events.append(_selected(record.payload, where))
            else:
                events += _event(record.payload, where)
    except _Damage as damage:
        events = _up_to_whole_step(events)
        warnings.warn(f"{path} {damage}; {_read_so_far(events)}", DamagedTrace, stacklevel=3)
    return tuple(events)


class _Damage(Exception):
    """Where and how a file stops being a trace."""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} is not a trace that can be read: {error}") from error


def _check_header(path: Path, data: bytes) -> None:
    if not data.startswith(_MAGIC) and not _MAGIC.startswith(data):
        raise DataError(f"{path} is not a trace: it doesn't begin with {_MAGIC.decode()}")
    if len(data) >= _HEADER.size:
        _, version = _HEADER.unpack_from(data)
        if version != VERSION:
            raise DataError(
                f"{path} is a trace of version {version}; this vblora_lab reads version {VERSION}"
            )


def _records(data: bytes) -> Iterator[_Record]:
    """The whole records of a file, in order; raises `_Damage` at the first that is not."""
    if len(data) < _HEADER.size:
        raise _Damage(f"ends within its header, after {len(data)} bytes")
    start = _HEADER.size
    head = _RECORD.size + _CHECKSUM.size
    while start < len(data):
        if start + head > len(data):
            raise _Damage(f"ends within a record, at byte {len(data):,}")
        kind, length = _RECORD.unpack_from(data, start)
        (checksum,) = _CHECKSUM.unpack_from(data, start + _RECORD.size)
        end = start + head + length
        payload = data[start + head : end]
        if len(payload) < length:
            raise _Damage(f"ends within a record, or is damaged, at byte {start:,}")
        if zlib.crc32(payload, zlib.crc32(data[start : start + _RECORD.size])) != checksum:
            raise _Damage(f"is damaged in the record at byte {start:,}: its checksum is wrong")
        yield _Record(kind, payload, start, end)
        start = end


def _end_of_step(data: bytes, step: int) -> int:
    """Where the events after a step begin; the end of the whole records, if there are none."""
    end = 0
    try:
        for record in _records(data):
            if _is_later(record, step):
                return record.start
            end = record.end
    except _Damage as damage:
        warnings.warn(f"the trace {damage}; the run goes on from there", DamagedTrace, stacklevel=2)
    return end


def _is_later(record: _Record, step: int) -> bool:
    if record.kind == b"S":
        return _SHAPE.unpack_from(record.payload)[0] > step
    if record.kind == b"C":
        return False
    facts = json.loads(record.payload)
    return facts["event"] == "Finished" or facts.get("step", 0) > step


def _coordinates(payload: bytes) -> SubVectors:
    with np.load(io.BytesIO(payload), allow_pickle=False) as file:
        arrays = dict(file)
    return SubVectors(modules=tuple(map(str, arrays.pop("modules"))), **arrays)


def _selected(payload: bytes, where: SubVectors | None) -> Selected:
    step, num_vectors, rows, k = _SHAPE.unpack_from(payload)
    if where is None or len(where) != rows:
        raise _Damage(f"has a selection at step {step} without its coordinates")
    kind = _index_type(num_vectors)
    indices = np.frombuffer(payload, kind, rows * k, _SHAPE.size)
    weights = np.frombuffer(payload, "<f2", rows * k, _SHAPE.size + indices.nbytes)
    return Selected(
        step,
        Selection(
            where,
            num_vectors,
            indices.reshape(rows, k).astype(np.int32),
            weights.reshape(rows, k).astype(np.float32),
        ),
    )


def _event(payload: bytes, where: SubVectors | None) -> list[Event]:
    """The event of a record; none where its kind is not known here."""
    facts: dict[str, Any] = json.loads(payload)
    kind = _EVENTS.get(facts.pop("event"))
    if kind is None:
        return []
    known = {f.name for f in fields(kind)}
    facts = {name: _tuples(value) for name, value in facts.items() if name in known}
    if "sub_vectors" in known:
        facts["sub_vectors"] = where
    if "samples" in facts:
        facts["samples"] = tuple(Sample(**sample) for sample in facts["samples"])
    if facts.get("error") is not None:
        facts["error"] = SessionError(facts["error"])
    return [kind(**facts)]


def _tuples(value: Any) -> Any:
    """JSON knows lists only; events hold tuples."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def _up_to_whole_step(events: list[Event]) -> list[Event]:
    """Without what was said of a step whose loss is missing."""
    steps = [event.step for event in events if isinstance(event, Stepped)]
    last = steps[-1] if steps else 0
    return [event for event in events if getattr(event, "step", 0) <= last]


def _read_so_far(events: list[Event]) -> str:
    steps = [event.step for event in events if isinstance(event, Stepped)]
    return f"read up to step {steps[-1]}" if steps else "no step could be read"
