"""What the files in the folder of a run are called, and how to read the small ones. Needs no torch.

run.trace        all that the run said (`Trace.load`); grows by an event at a time
run.json         what the run was started with
rates.json       peak learning rates that were changed during the run, and after which steps
result.json      what a run that was measured came to
adapter/         the final adapter, or the model after full fine-tuning
checkpoint-12/   HF Trainer's own, and `manifest`; see `train.checkpoints`
.aside/          what is being written, or deleted
.run.lock        locked by the session that trains; see `folder_lock`
"""

from __future__ import annotations

import json
import os
import reprlib
from pathlib import Path
from typing import Any

from vblora_lab.errors import DataError

TRACE = "run.trace"
SETTINGS = "run.json"
RATES = "rates.json"
RESULT = "result.json"
ADAPTER = "adapter"
CHECKPOINT = "checkpoint-"  # and the step
ASIDE = ".aside"
LOCK = ".run.lock"


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds, nothing if there is no file.

    Raises `DataError`, with the path, for what is no file and for other contents.
    """
    if not os.path.lexists(path):
        return {}
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} can't be read as JSON: it is no file")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(facts, dict):
        raise DataError(f"{path} holds {reprlib.repr(facts)}, where an object {{...}} belongs")
    return facts


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, the newest last."""
    found = [path for path in folder.glob(f"{CHECKPOINT}*") if path.is_dir()]
    return sorted((path for path in found if _step_name(path).isdecimal()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(_step_name(checkpoint))


def _step_name(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(CHECKPOINT)
