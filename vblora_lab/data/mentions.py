"""Which values of a slot a text mentions, by the expressions of the domain (`Value.mentions`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from vblora_lab.data.grammar import Slot


class Mention(NamedTuple):
    """A place in a text that a value's expression matches, from ``start`` to before ``end``."""

    value: str
    start: int
    end: int

    def overlaps(self, other: Mention) -> bool:
        return self.start < other.end and other.start < self.end

    def holds(self, other: Mention) -> bool:
        return self.start <= other.start and other.end <= self.end


def values_said(slot: Slot, expected: Iterable[str], text: str) -> tuple[list[str], list[str]]:
    """The expected values that a text mentions, and the values that it mentions beside them.

    A mention inside a longer mention of another value does not count: "not family-friendly" says
    no, and not also yes. A hint (`Value.hints`) counts like a mention where its value is expected,
    unless it is part of what another value's expression finds. Both lists are in the slot's order.
    """
    wanted = list(expected)
    values = [value.value for value in slot.values]
    values += [value for value in wanted if value not in values]
    mentions = [one for value in values for one in _found(slot.pattern(value), value, text)]
    hints = [one for value in values for one in _found(slot.hint_pattern(value), value, text)]
    counted = [one for one in mentions if not any(_is_part(one, other) for other in mentions)]
    meant = [one for one in counted if one.value in wanted]
    meant += [
        one
        for one in hints
        if one.value in wanted and not any(_is_denied(one, other) for other in mentions + hints)
    ]
    said = {one.value for one in meant}
    others = {
        one.value
        for one in counted
        if one.value not in wanted and not any(one.overlaps(other) for other in meant)
    }
    return [v for v in values if v in said], [v for v in values if v in others]


def _is_part(one: Mention, other: Mention) -> bool:
    """Whether another value's mention holds this one and more."""
    return other.value != one.value and other.holds(one) and not one.holds(other)


def _is_denied(hint: Mention, other: Mention) -> bool:
    """Whether another value's words share some with this hint and go beyond it."""
    return other.value != hint.value and other.overlaps(hint) and not hint.holds(other)


def _found(pattern: re.Pattern[str] | None, value: str, text: str) -> list[Mention]:
    return [Mention(value, *match.span()) for match in pattern.finditer(text)] if pattern else []
