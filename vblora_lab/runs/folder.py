"""The folder of a run: whatever lies in it is whole, at any moment.

`layout` says what is in it. All but the trace is written aside, forced to the disk, and then
renamed into place: a process that is killed, or a disk that is full, leaves the old state or the
new one. What the run did not write is neither replaced nor deleted. Needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vblora_lab.errors import ConfigError, DataError, SessionError
from vblora_lab.files import put_back, put_in_place
from vblora_lab.runs.fields import LARGEST_STEP, is_number, shown
from vblora_lab.runs.folder_check import check_is_free, check_kinds
from vblora_lab.runs.folder_lock import FolderLock
from vblora_lab.runs.layout import ASIDE, RATES, SETTINGS, checkpoints, read_json
from vblora_lab.runs.manifest import MANIFEST, read_manifest


class RunFolder:
    """``path``, as the folder of one run. It may be a link to a folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.aside = self.path / ASIDE
        self._lock = FolderLock(self.path)
        self._unlocked: OSError | None = None
        self._found: object = None

    def check(self, settings: dict[str, Any], resume: bool) -> None:
        """Refuse a folder that another run is in, or something that a run would replace.

        Changes nothing, and remembers what is there for `claim`.

        Raises:
            SessionError: there is a run, and ``resume`` is False; another session trains there; or
                something is there that no run wrote.
            ConfigError: there is a run of other ``settings``, and ``resume`` is True.
            DataError: its settings can't be read.
        """
        self._refuse(settings, resume)
        self._found = self._state()

    def claim(self, settings: dict[str, Any], resume: bool) -> None:
        """Lock the folder for a session that begins, until it calls `give_back`.

        Where it can't be locked, as where nothing can be written, `open` says so.

        Raises as `check`, and `SessionError` where the run that was there has gone on since.
        """
        self._refuse(settings, resume)
        try:
            self._lock.acquire()
        except OSError as error:
            self._unlocked = error
        try:
            self._refuse(settings, resume)
            if self._state() != self._found:
                raise SessionError(
                    f"the run in {str(self.path)!r} has gone on since this session was made. Make "
                    "a new session."
                )
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Let other sessions have the folder."""
        self._lock.release()

    def open(self, settings: dict[str, Any]) -> None:
        """Make the folder, clear what an earlier process left aside, and note the settings.

        Raises `OSError` where that fails; warns where it succeeds in a folder that can't be locked.
        """
        put_back(self.aside, self.path)
        shutil.rmtree(self.aside, ignore_errors=True)
        self._write_json(SETTINGS, _as_json(settings))
        if self._unlocked is not None:
            warnings.warn(
                f"{self.path} can't be locked, so let no other process train into it: "
                f"{self._unlocked}",
                stacklevel=2,
            )

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
        if self.aside.is_symlink():
            raise OSError(f"{self.aside} is a link: what is written there would lie elsewhere")
        self.aside.mkdir(parents=True, exist_ok=True)
        yield self.aside / name
        self.bring_in(name)

    def bring_in(self, name: str) -> Path:
        """Move what was written aside to its place, in place of what is there."""
        place = self.path / name
        put_in_place(self.aside / name, place, aside=self.aside)
        return place

    def take_along(self, name: str) -> None:
        """Copy what someone else laid into a folder to the one aside that takes its place."""
        for path in self._others(name):
            copy = self.aside / name / path.name
            if os.path.lexists(copy):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, copy, symlinks=True)
            else:
                shutil.copy2(path, copy, follow_symlinks=False)

    def remove(self, name: str) -> None:
        """Delete a folder that is here: whatever happens meanwhile, half of it never stays here.

        A folder stays whole if someone else laid something into it; only a manifest tells.
        """
        if os.path.lexists(self.path / name / MANIFEST) and self._others(name):
            return
        old = self.aside / f"old-{name}"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(self.path / name, old)
        shutil.rmtree(old)

    def _others(self, name: str) -> list[Path]:
        """What is in a folder that its manifest doesn't know; all, where there is none to read."""
        folder = self.path / name
        if not folder.is_dir():
            return []
        try:
            noted = read_manifest(folder) or {}
        except DataError:
            noted = {}
        own = {file.partition("/")[0] for file in noted} | {MANIFEST}
        return [path for path in sorted(folder.iterdir()) if path.name not in own]

    def _refuse(self, settings: dict[str, Any], resume: bool) -> None:
        """Raises as `check`."""
        check_kinds(self.path)
        self._lock.check()
        if not (self.path / SETTINGS).exists():
            check_is_free(self.path)
        elif not resume:
            raise SessionError(
                f"out={str(self.path)!r} holds a run already. Go on with it (resume=True, or "
                "--resume), or choose another folder."
            )
        else:
            self._check_settings(settings)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        before = read_json(self.path / SETTINGS)
        for name, value in _as_json(settings).items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{name}={value!r}, but the run in {str(self.path)!r} was started with "
                    f"{before.get(name)!r}. Resume it with the same, or choose another folder."
                )

    def _state(self) -> object:
        """What a session reads when it is made, and what another would have changed."""
        return self.rates(), [path.name for path in checkpoints(self.path)]

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
