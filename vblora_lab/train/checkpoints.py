"""HF Trainer's checkpoints in the folder of a run: each whole, and only the newest kept.

A checkpoint holds the adapter with all logits, optimizer, schedule and random states.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import CHECKPOINT, checkpoints


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

        Raises `OSError` where that fails.
        """
        place = self._folder.bring_in(f"{CHECKPOINT}{step}")
        for old in checkpoints(self._folder.path)[: -self._keep]:
            self._folder.remove(old.name)
        return place


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, as far as they show it; None if nothing is."""
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
                    safe_open(file, framework="np")  # which checks the file's length
                case ".json":
                    json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
            return f"{file.name}: {error}"
    return None
