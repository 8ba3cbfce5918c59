"""Which values of a slot a text mentions, by the expressions of the domain (`Value.mentions`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vblora_lab.data.grammar import Slot


class Mention(NamedTuple):
    """A place in a text that a value's expression matches, from ``start`` to before ``end``."""

    value: str
    start: int
    end: int

    def is_in(self, other: Mention) -> bool:
        """Whether another value's mention is longer and holds this one."""
        longer = other.end - other.start > self.end - self.start
        holds = other.start <= self.start and self.end <= other.end
        return other.value != self.value and longer and holds

    def overlaps(self, other: Mention) -> bool:
        return self.start < other.end and other.start < self.end


def values_said(slot: Slot, expected: Iterable[str], text: str) -> tuple[list[str], list[str]]:
    """The expected values that a text mentions, and the values that it mentions beside them.

    A mention inside a longer mention of another value does not count: "not family-friendly" says
    no, and not also yes. Words that may mean several values are understood as the expected one.
    Both lists are in the slot's order.
    """
    wanted = list(expected)
    values = [value.value for value in slot.values]
    values += [value for value in wanted if value not in values]
    found = [
        Mention(value, *match.span())
        for value in values
        for match in slot.pattern(value).finditer(text)
    ]
    counted = [one for one in found if not any(one.is_in(other) for other in found)]
    meant = [one for one in counted if one.value in wanted]
    others = {
        one.value
        for one in counted
        if one.value not in wanted and not any(one.overlaps(other) for other in meant)
    }
    said = {one.value for one in meant}
    return [v for v in values if v in said], [v for v in values if v in others]
