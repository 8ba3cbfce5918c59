"""Checks of numbers that a session is given, before anything is loaded or made."""

from __future__ import annotations

from vblora_lab.errors import ConfigError


def check_counts(least: int, **counts: int) -> None:
    """Raise `ConfigError`, by name, for what is not a whole number of at least ``least``."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")


def check_seed(seed: int) -> None:
    """Raise `ConfigError` for a seed that NumPy, and so the Trainer, does not take."""
    check_counts(0, seed=seed)
    if seed >= 2**32:
        raise ConfigError(f"seed={seed!r} must be below 2**32; {seed % 2**32} would do")
