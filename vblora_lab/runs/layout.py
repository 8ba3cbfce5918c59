"""What the files of a run are called, and how the small ones are read. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vblora_lab.errors import DataError

TRACE = "run.trace"
SETTINGS = "run.json"
RESULT = "result.json"
RATES = "rates.json"
ADAPTER = "adapter"


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds, nothing if there is none; raises `DataError` for other contents."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}") from error
