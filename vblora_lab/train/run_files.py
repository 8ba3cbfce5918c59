"""What a session leaves in its folder: settings, trace, changed rates, the adapter.

The Trainer's checkpoints are another matter, see `checkpoints`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from vblora_lab.runs.events import Event, Finished, Listener
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import ADAPTER, TRACE
from vblora_lab.runs.trace import Trace
from vblora_lab.runs.trace_file import TraceWriter
from vblora_lab.train.optimizer import LearningRates

# What writing to a full disk or a read-only folder raises: Python, torch.save, safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class RunFiles:
    """Writes the files of a run. What can't be written is reported, and nothing is raised.

    Args:
        folder: of the run; None to write nothing.
        tell: called with a sentence that says what could not be written, and why.
    """

    def __init__(self, folder: RunFolder | None, tell: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, tell

    def events_until(self, step: int) -> list[Event]:
        """The events of the part of the run that ended with a step; empty for step 0."""
        if not step or self._folder is None or not (self._folder.path / TRACE).exists():
            return []
        told = Trace.load(self._folder.path / TRACE).events
        return [event for event in told if event.step <= step and not isinstance(event, Finished)]

    def listeners(self, step: int) -> list[Listener]:
        """What writes the trace from a step on, and then lets others have the folder at the end."""
        if self._folder is None:
            return []
        path = self._folder.path / TRACE
        return [TraceWriter(path, resume_from=step or None, tell=self._tell), self._give_back]

    def claim(self, settings: dict[str, Any], resume: bool) -> None:
        """Keep others out of the folder; raises as `RunFolder.claim`, with nothing changed."""
        if self._folder is not None:
            self._folder.claim(settings, resume)

    def open(self, settings: dict[str, Any]) -> list[str]:
        """Make the folder and note the settings; before the trace, so that both are one run's.

        Returns sentences that say what could not be written.
        """
        problems: list[str] = []
        if self._folder is not None:
            self._write("the folder", partial(self._folder.open, settings), problems.append)
        return problems

    def note_rates(self, step: int, rates: LearningRates) -> None:
        """Note peak rates that hold from the step after ``step`` on."""
        if self._folder is not None:
            noted = partial(self._folder.note_rates, step, dataclasses.asdict(rates))
            self._write("the new learning rates", noted)

    def save_adapter(self, model: PeftModel) -> Path | None:
        """Save the adapter and return its folder; None where it is not saved."""
        if self._folder is None:
            return None
        saved = self._write("the adapter", partial(_save_pretrained, model, self._folder))
        return self._folder.path / ADAPTER if saved else None

    def _write(
        self, what: str, write: Callable[[], None], tell: Callable[[str], None] | None = None
    ) -> bool:
        """Whether it could be written."""
        try:
            write()
        except WRITE_ERRORS as error:
            (tell or self._tell)(f"{what} not saved: {error}")
            return False
        return True

    def _give_back(self, event: Event) -> None:
        if self._folder is not None and isinstance(event, Finished):
            self._folder.give_back()


def _save_pretrained(model: PeftModel, folder: RunFolder) -> None:
    with folder.writing(ADAPTER) as aside:
        model.save_pretrained(str(aside))
        folder.take_along(ADAPTER)
