"""A trace file, which grows by one event at a time and survives whatever ends the run.

`TraceWriter` writes while a run goes on, `write_events` a whole run at once; `read_events` reads
what either wrote, or what is left of it. The bytes are those of `trace_records`.
"""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from vblora_lab.errors import DataError
from vblora_lab.inspection.selection import SubVectors
from vblora_lab.runs.events import Event, Finished, Started, Stepped, Working
from vblora_lab.runs.trace_records import (
    HEADER,
    Damage,
    check_header,
    pack,
    unpack,
)


class DamagedTrace(UserWarning):
    """A trace file ends early or has changed bytes; what comes before them was read."""


# --- writing


class TraceWriter:
    """A listener that appends each event (but `Working`) to a file, and hands it to the system.

    Args:
        path: the file; made, with its folder, at the first event. A trace that is there already is
            replaced, unless the run goes on from it. A run that ends before it says anything else
            changes nothing.
        resume_from: the step after which a resumed run goes on; by default the one that the first
            `Started` gives. What the file holds of later steps is cut off, and what it has of
            earlier ones is not written again.
        tell: called with a sentence if the disk is full or the folder can't be written; by default
            `warnings.warn`.

    Such a failure is reported once, and its exception kept in `error`: the file ends with its last
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
            check_header(self.path, _read(self.path))

    def __call__(self, event: Event) -> None:
        if isinstance(event, Working):
            return
        if isinstance(event, Finished) and not self._begun and not self._waiting:
            return
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
                data, where = pack(self._waiting[0], self._where)
                self._write(data)
                self._where = where
            self._waiting.popleft()

    def _has(self, event: Event) -> bool:
        """Whether this event is in the part of the run that the file keeps."""
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
            self._resume_from = None  # nothing of the run is kept, so all of it is to be written
            self._write(HEADER)
        self._begun = True

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
    parts, known = [HEADER], None
    for event in events:
        data, known = pack(event, known)
        parts.append(data)
    Path(path).write_bytes(b"".join(parts))


def _end_of_step(data: bytes, step: int) -> int:
    """Where the events after a step begin; the end of the whole records if there are none."""
    end = 0
    try:
        for record, event, its_step in unpack(data):
            if its_step > step or isinstance(event, Finished):
                return record.start
            end = record.end
    except Damage as damage:
        warnings.warn(f"the trace {damage}; the run goes on from there", DamagedTrace, stacklevel=2)
    return end


# --- reading


def read_events(path: str | Path) -> tuple[Event, ...]:
    """The events of a file, up to its last whole step; numpy is all that is needed.

    Warns with `DamagedTrace` where the file ends within a record, a checksum is wrong, or a record
    holds what no run can have said: what comes before is read. Raises `DataError` where path is
    missing, is no trace, or has a newer version.
    """
    data = _read(Path(path))
    check_header(Path(path), data)
    events: list[Event] = []
    try:
        for unpacked in unpack(data):
            if unpacked.event is not None:
                events.append(unpacked.event)
    except Damage as damage:
        events = _up_to_whole_step(events)
        warnings.warn(f"{path} {damage}; {_read_so_far(events)}", DamagedTrace, stacklevel=3)
    return tuple(events)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} is not a trace that can be read: it is no file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} is not a trace that can be read: {error}") from error


def _up_to_whole_step(events: list[Event]) -> list[Event]:
    """Without what was said of a step whose loss is missing."""
    steps = [event.step for event in events if isinstance(event, Stepped)]
    last = steps[-1] if steps else 0
    return [event for event in events if getattr(event, "step", 0) <= last]


def _read_so_far(events: list[Event]) -> str:
    steps = [event.step for event in events if isinstance(event, Stepped)]
    return f"read up to step {steps[-1]}" if steps else "no step could be read"
