"""Checks of one value each, for the fields of a config.

A check gives the value back, in the type that the config holds, or raises a `ConfigError` that
names the field, its value and what is allowed. A check of a number takes the dataclass field, and
reads its bounds from the field's metadata (`at_least`, `below`); the others take the field's name.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable
from typing import Any

from vblora_lab.errors import ConfigError, did_you_mean, nearest
from vblora_lab.tuner.patterns import LONGEST

Field = dataclasses.Field[Any]


def choice(name: str, value: Any, choices: Iterable[str]) -> Any:
    """One of these values."""
    choices = list(choices)
    if value in choices:
        return value
    allowed = ", ".join(map(repr, choices))
    raise ConfigError(
        f"{name}={value!r}: must be one of {allowed}.{did_you_mean(value, choices)}",
        field=name,
        suggestion=nearest(value, choices),
    )


def whole_number(spec: Field, value: Any) -> int:
    """A whole number within the field's bounds, as int; True and 4.0 are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        near = None
        if _is_finite(value):
            near = max(round(value), spec.metadata["at_least"])
        hint = "" if near is None else f"; the nearest is {near}"
        raise ConfigError(
            f"{spec.name}={value!r}: must be a whole number, {_bounds(spec)}, "
            f"not {type(value).__name__}{hint}.",
            field=spec.name,
            suggestion=near,
        )
    _check_bounds(spec, int(value))
    return int(value)


def real_number(spec: Field, value: Any) -> float:
    """A finite number within the field's bounds, as float."""
    if not _is_finite(value):
        raise ConfigError(
            f"{spec.name}={value!r}: must be a finite number, {_bounds(spec)}.", field=spec.name
        )
    _check_bounds(spec, float(value))
    return float(value)


def true_or_false(spec: Field, value: Any) -> bool:
    """True or False; no other value counts as one of them."""
    if not isinstance(value, bool):
        raise ConfigError(f"{spec.name}={value!r}: must be True or False.", field=spec.name)
    return value


OF_TYPE = {"int": whole_number, "float": real_number, "bool": true_or_false}  # by annotation


def strings(name: str, values: Any) -> list[str]:
    """A list of names; a string by itself is no list, and an empty string no name."""
    if not isinstance(values, (list, tuple, set, frozenset)):
        raise ConfigError(f"{name}={values!r}: must be a list of names.", field=name)
    for value in values:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{name}={values!r}: {value!r} is not a name.", field=name)
    return list(values)


def names_or_regex(name: str, value: Any) -> set[str] | str | None:
    """A set of names, which is what PEFT holds, or a regular expression, or None."""
    if value is None:
        return None
    if isinstance(value, str):
        return regex(name, value)
    return set(strings(name, value))


def regex(name: str, value: str) -> str:
    """A regular expression that isn't empty."""
    if not value:
        raise ConfigError(f"{name}='': is empty; give names, or leave it out.", field=name)
    if len(value) > LONGEST:
        raise ConfigError(
            f"{name}: an expression of {len(value)} characters; may have {LONGEST}. To name "
            "modules, give a list of names.",
            field=name,
        )
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{name}={value!r}: is not a regular expression ({error}). To name modules, give a "
            "list of names.",
            field=name,
        ) from error
    return value


def _is_finite(value: Any) -> bool:
    """Whether this is a real number that a float can hold."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _bounds(spec: Field) -> str:
    rules = [
        text.format(spec.metadata[key])
        for key, text in (("at_least", "at least {}"), ("below", "below {}"))
        if key in spec.metadata
    ]
    return " and ".join(rules)


def _check_bounds(spec: Field, value: float) -> None:
    lowest, limit = spec.metadata.get("at_least", -math.inf), spec.metadata.get("below", math.inf)
    if not lowest <= value < limit:
        # Below its lower bound, the nearest valid value is known; above, only the rule is.
        hint = f"; the nearest is {lowest}" if value < lowest else ""
        raise ConfigError(
            f"{spec.name}={value!r}: must be {_bounds(spec)}{hint}.",
            field=spec.name,
            suggestion=lowest if value < lowest else None,
        )
