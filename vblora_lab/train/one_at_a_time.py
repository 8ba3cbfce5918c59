"""One session trains at a time in a process: two would draw from the same random numbers."""

from __future__ import annotations

import threading

from vblora_lab.errors import SessionError

_TRAINING = threading.Lock()


def begin() -> None:
    """Be the one that trains, until `end`. Raises `SessionError` while another does."""
    if not _TRAINING.acquire(blocking=False):
        _refuse()


def end() -> None:
    """Let another train."""
    _TRAINING.release()


def check_none_trains() -> None:
    """Raise `SessionError` while a session trains in this process, where only one can."""
    if _TRAINING.locked():
        _refuse()


def _refuse() -> None:
    raise SessionError(
        "another session is training in this process. Stop it, or wait for its end, first."
    )
