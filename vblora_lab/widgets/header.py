"""The title line of a panel: what it is, on what, how it stands, and what a person waits for."""

from __future__ import annotations

import time

import ipywidgets

from vblora_lab.runs.events import Working
from vblora_lab.widgets import readout

TELL_EVERY = 0.25
"""Seconds between two updates of how far something is that takes longer than a step."""


class Header(ipywidgets.HTML):
    """A line of HTML.

    Args:
        title: of the panel.
        base, task: what the base model and the task are called.
    """

    def __init__(self, title: str, base: str, task: str) -> None:
        super().__init__()
        self._names = title, base, task
        self._status = "ready"
        self._work: Working | None = None
        self._told_at = 0.0

    def show(self, status: str) -> None:
        """Say how the run stands: as `readout.header`. What was done is over then."""
        self._status, self._work = status, None
        self._write()

    def tell(self, work: Working | None) -> None:
        """Say what is done now: at once if it is something else, and how far it is now and then."""
        before, self._work = self._work, work
        is_new = (work and work.what) != (before and before.what)
        if is_new or (work and time.monotonic() - self._told_at >= TELL_EVERY):
            self._write()

    def _write(self) -> None:
        self._told_at = time.monotonic()
        work = str(self._work) if self._work else ""
        self.value = readout.header(*self._names, self._status, work)
