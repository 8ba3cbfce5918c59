"""Checks of what a session is given, before anything is loaded or made."""

from __future__ import annotations

from vblora_lab.data import Task
from vblora_lab.errors import ConfigError, DataError


def check_counts(least: int, **counts: int) -> None:
    """Raise `ConfigError`, by name, for what is not a whole number of at least ``least``."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")


def check_seed(seed: int) -> None:
    """Raise `ConfigError` for a seed that NumPy, and so the Trainer, does not take."""
    check_counts(0, seed=seed)
    if seed >= 2**32:
        raise ConfigError(f"seed={seed!r} must be below 2**32; {seed % 2**32} would do")


def with_examples(task: Task) -> Task:
    """The task; raises `DataError` if it has nothing to train on."""
    if not task.train:
        raise DataError(f"task {task.name!r} has no training examples; it needs at least 1.")
    return task
