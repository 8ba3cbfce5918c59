"""HF Trainer's checkpoints in the folder of a run: each whole, and only the newest kept.

A checkpoint holds the adapter with all logits, optimizer, schedule and random states. A manifest of
these files shows a change of any bit before a run goes on.
"""

from __future__ import annotations

import json
import warnings
import zipfile
import zlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from vblora_lab.errors import DataError
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import CHECKPOINT, checkpoints, read_json, step_of
from vblora_lab.runs.manifest import change, write_manifest

# Where the optimizer is kept: by the Trainer itself, by FSDP whole or in parts, by DeepSpeed.
OPTIMIZERS = (OPTIMIZER_NAME, "optimizer.bin", "optimizer_0/*", "global_step*/*optim_states.pt")


class Checkpoints:
    """The checkpoints in a folder; the newest ``keep`` stay.

    Attributes:
        aside: where the Trainer is to write a checkpoint before `bring_in` moves it to its place.
    """

    def __init__(self, folder: RunFolder, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep
        self.aside = folder.aside

    def latest(self) -> Path | None:
        """The newest whole checkpoint, to resume from. Warns of newer ones that are damaged."""
        for checkpoint in reversed(checkpoints(self._folder.path)):
            damage = _damage(checkpoint)
            if damage is None:
                return checkpoint
            warnings.warn(
                f"{checkpoint} is damaged ({damage}); the run goes on from the one before, or "
                "begins again if there is none",
                stacklevel=3,
            )
        return None

    def bring_in(self, step: int) -> Path:
        """Move a checkpoint that was written aside to its place, and delete what is too old.

        All processes must have written their files. Of later steps, only damaged checkpoints can
        be here; they stay and don't count. Raises `OSError` where that fails.
        """
        name = f"{CHECKPOINT}{step}"
        write_manifest(self.aside / name)
        self._folder.take_along(name)
        place = self._folder.bring_in(name)
        known = [path for path in checkpoints(self._folder.path) if step_of(path) <= step]
        for old in known[: -self._keep]:
            self._folder.remove(old.name)
        return place


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is.

    One that an earlier version wrote has no manifest: what its files show by themselves counts.
    """
    try:
        return (
            change(checkpoint) or _missing(checkpoint) or _unreadable(checkpoint)
            or _wrong_state(checkpoint)
        )  # fmt: skip
    except (OSError, DataError) as error:
        return str(error)


def _missing(checkpoint: Path) -> str | None:
    for name in (TRAINER_STATE_NAME, SCHEDULER_NAME):
        if not (checkpoint / name).exists():
            return f"{name} is missing"
    if not any(any(checkpoint.glob(name)) for name in OPTIMIZERS):
        return f"{OPTIMIZER_NAME} is missing"
    if not any(checkpoint.glob("rng_state*.pth")):  # one for each process that trained
        return "rng_state.pth is missing"
    return None


def _unreadable(checkpoint: Path) -> str | None:
    for file in sorted(checkpoint.iterdir()):
        if not (file.is_file() or file.is_dir()):  # a pipe would be waited for
            return f"{file.name} is no file"
        try:
            match file.suffix:
                case ".pt" | ".pth":  # torch writes zip files, with checksums
                    with zipfile.ZipFile(file) as archive:
                        if (changed := archive.testzip()) is not None:
                            return f"{file.name}: {changed} has changed"
                case ".safetensors":
                    safe_open(file, framework="np")  # which checks the file's length
                case ".json":
                    json.loads(file.read_text(encoding="utf-8"))
        except _UNREADABLE as error:
            return f"{file.name}: {error}"
    return None


# What files raise that are not what their names say.
_UNREADABLE = (
    OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile, SafetensorError
)  # fmt: skip


def _wrong_state(checkpoint: Path) -> str | None:
    """What HF Trainer could not go on from, though it is JSON."""
    state = read_json(checkpoint / TRAINER_STATE_NAME)
    usual = vars(TrainerState())
    for name, value in state.items():
        if name not in usual:
            return f"{TRAINER_STATE_NAME} has an unknown field {name!r}"
        kind: type | tuple[type, ...] = type(usual[name])
        if isinstance(usual[name], int | float) and not isinstance(usual[name], bool):
            kind = (int, float)
        if usual[name] is not None and not isinstance(value, kind):
            return f"{TRAINER_STATE_NAME} has {name} of type {type(value).__name__}"
    if state.get("global_step") != step_of(checkpoint):
        return f"{TRAINER_STATE_NAME} is that of step {state.get('global_step')!r}"
    if not all(isinstance(row, dict) and "step" in row for row in state.get("log_history", ())):
        return f"{TRAINER_STATE_NAME} has a log_history that is none"
    return None
