"""Exceptions of vblora_lab: each names the field, the value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(wrong: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like a wrong one, whatever the case of its letters.

    Args:
        wrong: what was given instead of a name.
        known: the names that there are.
        cutoff: how like it must be, from 0 (anything) to 1; see `difflib.get_close_matches`.
    """
    by_lower_case: dict[str, str] = {}
    for name in known:
        by_lower_case.setdefault(name.lower(), name)
    close = difflib.get_close_matches(str(wrong).lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[close[0]] if close else None


def did_you_mean(wrong: object, known: Iterable[str]) -> str:
    """A hint to put behind a sentence, " Did you mean 'x'?"; empty if no known name is near."""
    near = nearest(wrong, known)
    return "" if near is None else f" Did you mean {near!r}?"


class VBLoRAError(Exception):
    """Whatever this package raises on purpose; catch it to catch them all."""


class ConfigError(VBLoRAError, ValueError):
    """A field of a `VBLoRAConfig` has a value that can't be meant.

    Attributes:
        field: the field at fault, where there is one.
        suggestion: a value for it that would do; None where none is known.
    """

    def __init__(self, message: str, *, field: str | None = None, suggestion: Any = None):
        super().__init__(message)
        self.field = field
        self.suggestion = suggestion


class TargetError(VBLoRAError, ValueError):
    """A model and a config don't fit: no such module, or one that can't be cut into tiles."""


class CheckpointError(VBLoRAError, ValueError):
    """A file or folder is not a VB-LoRA adapter, or not one that fits this model or this use."""


class InferenceOnlyError(CheckpointError, RuntimeError):
    """An adapter of which only the top-k weights were stored is to be trained.

    A RuntimeError too, since that is what PEFT raises here.
    """


class MergeError(VBLoRAError, ValueError):
    """An adapter can't be added to the weights of the base model."""


class UnsupportedError(VBLoRAError, NotImplementedError):
    """PEFT offers this for other methods; VB-LoRA has no such operation."""


class SelectionError(VBLoRAError, ValueError):
    """Two selections, or a selection and a model, don't belong together."""


class CounterfactualError(VBLoRAError, ValueError):
    """A change to try on an adapter can't be made, or would change nothing."""


class BaseModelError(VBLoRAError, OSError):
    """A base model can't be loaded: it is not shipped or cached, and the hub is out of reach."""


class DataError(VBLoRAError, ValueError):
    """A data set, a meaning representation or a domain can't be read as one."""


class SessionError(VBLoRAError, RuntimeError):
    """A training session is asked for something that its state doesn't allow."""


class DivergedError(VBLoRAError, ArithmeticError):
    """The loss became NaN or exploded. The model holds the last state that was good."""


class BatchTooLargeError(VBLoRAError, MemoryError):
    """A batch doesn't fit into the device's memory; the message names one that does."""


class StoreError(VBLoRAError, ValueError):
    """A store of adapters can't be opened or written, or doesn't hold what was asked for."""


class UnknownAdapterError(StoreError, KeyError):
    """A store has no adapter of that name."""

    def __str__(self) -> str:  # KeyError would put quotes around the sentence
        return str(self.args[0])


class ExerciseError(VBLoRAError, KeyError):
    """The course has no exercise of that name."""

    def __str__(self) -> str:  # KeyError would put quotes around the sentence
        return str(self.args[0])


class MissingExtraError(VBLoRAError, ImportError):
    """Something needs a package that is not installed with the lab unless asked for."""
