"""Objects out of what a JSON file holds of them: each field is there and of its type, or refused.

Files may come from anywhere. What is built here has no field that its users don't expect.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

LARGEST = 2**63 - 1
LARGEST_STEP = 2**31 - 1  # traces keep steps as int32
_STEPS = ("step", "total_steps")


class WrongField(ValueError):
    """A field is missing, not known, or of a wrong type; the message names it."""


def built(kind: type[T], facts: object, **given: Any) -> T:
    """An object of a dataclass, out of the JSON value that was written of it.

    Args:
        kind: the dataclass. Its fields with defaults may be missing.
        facts: the JSON value; an object with the dataclass's fields and no others.
        given: the fields that JSON does not hold.

    Raises `WrongField`.
    """
    if not isinstance(facts, dict):
        raise WrongField(f"{shown(facts)} stands where {kind.__name__}, an object, belongs")
    own = {field.name: field for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    for name in sorted(facts.keys() - own.keys()):
        raise WrongField(f"{kind.__name__} has a field {shown(name)}, which is not known")
    values = dict(given)
    for name, field in own.items():
        if name in facts:
            values[name] = _value(kind, name, str(field.type), facts[name])
        elif field.default is MISSING:
            raise WrongField(f"{kind.__name__} has no {name}")
    return kind(**values)


def shown(value: object) -> str:
    """A value as a message shows it: cut, however long it is."""
    return reprlib.repr(value)


def is_whole(value: object, largest: int = LARGEST) -> bool:
    """Whether this is a whole number from 0 to `largest`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def is_number(value: object) -> bool:
    """Whether this is a number, NaN and infinity included."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return whole or isinstance(value, float)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _value(kind: type, name: str, annotation: str, value: Any) -> Any:
    if annotation == "int" and name in _STEPS and not is_whole(value, LARGEST_STEP):
        raise WrongField(
            f"{kind.__name__} has {name}={shown(value)}; allowed: 0 to {LARGEST_STEP:,}"
        )
    expected = _TYPES[annotation]
    if not expected.fits(value):
        raise WrongField(
            f"{kind.__name__} has {name}={shown(value)}; allowed: {expected.description}"
        )
    return expected.convert(value)


class _Type(NamedTuple):
    """What a field may hold: as JSON has it, in words, and how it becomes the field's value."""

    fits: Callable[[Any], bool]
    description: str
    convert: Callable[[Any], Any] = lambda value: value


_TYPES: dict[str, _Type] = {
    "int": _Type(is_whole, "a whole number of 0 or more"),
    "float": _Type(is_number, "a number"),
    "str": _Type(_is_text, "a text"),
    "Reason": _Type(
        lambda value: value in ("completed", "stopped", "failed"),
        "'completed', 'stopped' or 'failed'",
    ),
    "dict[str, float]": _Type(
        lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
        "an object of numbers",
    ),
    "tuple[str, ...]": _Type(
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        "a list of texts",
        tuple,
    ),
}
"""By the annotations of the fields."""
