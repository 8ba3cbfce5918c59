"""How many cases each test tries: few and always the same, or many new ones (`make fuzz`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

ALL = int(os.environ.get("VBLORA_LAB_FUZZ", "0"))  # cases of the whole suite; 0: the short run


def cases(few: int, share: float) -> Callable[[Any], Any]:
    """Settings for a test.

    Args:
        few: how many cases the short run tries; the same ones every time.
        share: its part of a long run.
    """
    return settings(
        max_examples=max(1, round(share * ALL)) if ALL else few,
        derandomize=not ALL,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
