"""The folder of a run: whatever lies in it is whole, at any moment.

`layout` says what is in it. All but the trace is written aside, forced to the disk, and then
renamed into place: a process that is killed, or a disk that is full, leaves the old state or the
new one. Needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vblora_lab.errors import ConfigError, DataError, SessionError
from vblora_lab.files import put_in_place
from vblora_lab.runs.fields import LARGEST_STEP, is_number, shown
from vblora_lab.runs.layout import ASIDE, RATES, SETTINGS, checkpoints, read_json


class RunFolder:
    """``path``, as the folder of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.aside = self.path / ASIDE

    def check(self, settings: dict[str, Any], resume: bool) -> None:
        """Refuse a folder that another run is in; changes nothing.

        Raises:
            SessionError: there is a run, and ``resume`` is False.
            ConfigError: there is a run of other ``settings``, and ``resume`` is True.
            DataError: its settings can't be read.
        """
        file = self.path / SETTINGS
        if not file.exists() and not checkpoints(self.path):
            return
        if not resume:
            raise SessionError(
                f"out={str(self.path)!r} holds a run already. Go on with it (resume=True, or "
                "--resume), or choose another folder."
            )
        if not file.exists():
            raise SessionError(f"out={str(self.path)!r} holds checkpoints, but no {SETTINGS}.")
        before = read_json(file)
        for name, value in _as_json(settings).items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{name}={value!r}, but the run in {str(self.path)!r} was started with "
                    f"{before.get(name)!r}. Resume it with the same, or choose another folder."
                )

    def open(self, settings: dict[str, Any]) -> None:
        """Make the folder, clear what an earlier process left aside, and note the settings."""
        shutil.rmtree(self.aside, ignore_errors=True)
        self._write_json(SETTINGS, _as_json(settings))

    def note_rates(self, step: int, rates: dict[str, float]) -> None:
        """Note rates that hold from the step after ``step`` on, in place of any noted for later."""
        noted = {n: earlier for n, earlier in self.rates().items() if n < step} | {step: rates}
        self._write_json(RATES, noted)

    def rates(self) -> dict[int, dict[str, float]]:
        """What was noted, in the order of the steps. Raises `DataError` for another file."""
        path = self.path / RATES
        noted = read_json(path)
        for step, rates in noted.items():
            if not (_is_step(step) and _are_rates(rates)):
                raise DataError(
                    f"{path} holds {shown({step: rates})}; expected: the number of a step, and "
                    "rates of 0 or more by their names"
                )
        return {int(step): noted[step] for step in sorted(noted, key=int)}

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path aside to write a file or folder at; it gets its place if the block succeeds."""
        self.aside.mkdir(parents=True, exist_ok=True)
        yield self.aside / name
        self.bring_in(name)

    def bring_in(self, name: str) -> Path:
        """Move what was written aside to its place, in place of what is there."""
        place = self.path / name
        put_in_place(self.aside / name, place, aside=self.aside)
        return place

    def remove(self, name: str) -> None:
        """Delete a folder that is here: whatever happens meanwhile, half of it never stays here."""
        old = self.aside / f"old-{name}"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(self.path / name, old)
        shutil.rmtree(old)

    def _write_json(self, name: str, facts: dict[Any, Any]) -> None:
        with self.writing(name) as aside:
            aside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """As the settings come back from a file: sets become sorted lists, tuples lists."""
    return json.loads(json.dumps(settings, default=sorted))  # type: ignore[no-any-return]


def _is_step(name: str) -> bool:
    return name.isdecimal() and len(name) <= len(str(LARGEST_STEP))


def _are_rates(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_number(rate) and 0 <= rate < math.inf for rate in value.values()
    )
