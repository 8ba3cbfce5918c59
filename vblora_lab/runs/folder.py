"""The folder of a run: what lies in it is whole, at any moment.

    checkpoint-12/   HF Trainer's own: adapter with all logits, optimizer, scheduler, random states
    adapter/         the final adapter; PEFT loads it
    run.trace        all that the run said (`Trace.load`); grows by an event at a time
    run.json         what the run was started with
    rates.json       peak learning rates that were changed meanwhile, and after which steps
    .aside/          what is being written, or deleted

All but the trace is written aside, forced to the disk, and then renamed into place. A process
that is killed, or a disk that is full, leaves the old state or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from vblora_lab.errors import ConfigError, SessionError
from vblora_lab.runs.layout import RATES, SETTINGS, read_json


class RunFolder:
    """``path`` for one run; the newest ``keep`` checkpoints stay in it."""

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep
        self.aside = self.path / ".aside"

    def check(self, settings: dict[str, Any], resume: bool) -> None:
        """Refuse a folder that another run is in; changes nothing.

        Raises:
            SessionError: there is a run, and ``resume`` is False.
            ConfigError: there is a run of other ``settings``, and ``resume`` is True.
            DataError: its settings can't be read.
        """
        file = self.path / SETTINGS
        if not file.exists() and not self._checkpoints():
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
        with self.writing(SETTINGS) as aside:
            aside.write_text(json.dumps(_as_json(settings), indent=2) + "\n", encoding="utf-8")

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, to resume from. Warns of newer ones that are damaged."""
        for checkpoint in reversed(self._checkpoints()):
            damage = _damage(checkpoint)
            if damage is None:
                return checkpoint
            warnings.warn(
                f"{checkpoint} is damaged ({damage}); the run goes on from the one before, or "
                "begins again if there is none",
                stacklevel=3,
            )
        return None

    def _checkpoints(self) -> list[Path]:
        """All that are there, the newest last."""
        return [Path(path) for path in sort_checkpoints(str(self.path), PREFIX_CHECKPOINT_DIR)]

    def note_rates(self, step: int, rates: dict[str, float]) -> None:
        """Note rates that hold from the step after ``step`` on, in place of any noted for later."""
        noted = {n: earlier for n, earlier in self.rates().items() if n < step} | {step: rates}
        with self.writing(RATES) as aside:
            aside.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")

    def rates(self) -> dict[int, dict[str, float]]:
        """What was noted, in the order of the steps."""
        noted = read_json(self.path / RATES)
        return {int(step): noted[step] for step in sorted(noted, key=int)}

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path aside to write a file or folder at; it gets its place if the block succeeds."""
        self.aside.mkdir(parents=True, exist_ok=True)
        yield self.aside / name
        self.bring_in(name)

    def bring_in(self, name: str) -> Path:
        """Move what was written aside to its place, in place of what is there."""
        new, place = self.aside / name, self.path / name
        _force_to_disk(new)
        if place.is_dir():  # a folder can't be renamed over another
            self._remove(place)
        os.replace(new, place)
        _force_to_disk(self.path, contents=False)
        return place

    def prune(self) -> None:
        """Delete all but the newest checkpoints."""
        for old in self._checkpoints()[: -self.keep]:
            self._remove(old)

    def _remove(self, folder: Path) -> None:
        old = self.aside / f"old-{folder.name}"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)  # first out of the way: half a checkpoint must not look like one
        shutil.rmtree(old)


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, as far as they can tell; None if nothing is."""
    for name in (TRAINER_STATE_NAME, OPTIMIZER_NAME, SCHEDULER_NAME):
        if not (checkpoint / name).exists():
            return f"{name} is missing"
    for file in sorted(checkpoint.iterdir()):
        try:
            match file.suffix:
                case ".pt" | ".pth":  # torch writes zip files, with checksums
                    with zipfile.ZipFile(file) as archive:
                        if (changed := archive.testzip()) is not None:
                            return f"{file.name}: {changed} has changed"
                case ".safetensors":
                    safe_open(file, framework="np")  # which looks at the file's length
                case ".json":
                    json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
            return f"{file.name}: {error}"
    return None


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """As the settings come back from a file: sets become sorted lists, tuples lists."""
    return json.loads(json.dumps(settings, default=sorted))  # type: ignore[no-any-return]


def _force_to_disk(path: Path, contents: bool = True) -> None:
    if path.is_dir():
        for inner in sorted(path.iterdir()) if contents else ():
            _force_to_disk(inner)
        if os.name == "nt":  # where folders can't be opened, and renames are forced by themselves
            return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
