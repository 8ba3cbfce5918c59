"""Meaning representations, written as the E2E NLG challenge writes them.

A meaning representation (MR) is a flat list of slots, ``name[Blue Spice], eatType[pub]``: what a
text has to say. A slot may occur more than once, each time with another value. Format: Novikova,
Dusek and Rieser, "The E2E Dataset: New Challenges For End-to-End Generation" (2017), arXiv
1706.09254.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from vblora_lab.errors import DataError

#: Slot -> its value, or a tuple of two or more where the slot has several.
Facts: TypeAlias = Mapping[str, str | tuple[str, ...]]

# No two parts of this can match the same character, so that reading takes one pass.
_SLOT = re.compile(r"([^\[\],]+)\[([^\[\]]*)\]\s*(?:,\s*|\Z)")


def parse_mr(mr: str) -> dict[str, str | tuple[str, ...]]:
    """Read ``"name[Blue Spice], area[riverside]"`` into ``{"name": "Blue Spice", ...}``.

    Slots keep their order. A slot with several values has the tuple of them, in their order and
    each once. Raises `DataError` where the text is not a list of ``slot[value]`` and names the
    place at which reading stopped.
    """
    found: dict[str, list[str]] = {}
    position = len(mr) - len(mr.lstrip())
    while position < len(mr):
        match = _SLOT.match(mr, position)
        if match is None or not match.group(1).strip():
            raise DataError(
                f"not a meaning representation at character {position}: "
                f"{mr[position : position + 40]!r}. "
                "Write slots as 'name[Blue Spice], area[riverside]'."
            )
        values = found.setdefault(match.group(1).strip(), [])
        value = match.group(2).strip()
        if value not in values:
            values.append(value)
        position = match.end()
    if not found:
        raise DataError(
            f"the meaning representation {mr[:40]!r} has no slot. "
            "Write slots as 'name[Blue Spice], area[riverside]'."
        )
    return {slot: v[0] if len(v) == 1 else tuple(v) for slot, v in found.items()}


def is_mr(text: str) -> bool:
    """Whether a text is a meaning representation, as `parse_mr` reads it."""
    try:
        parse_mr(text)
    except DataError:
        return False
    return True


def format_mr(slots: Facts) -> str:
    """Write slots as one MR; the inverse of `parse_mr`. Values of one slot stand side by side."""
    return ", ".join(f"{slot}[{value}]" for slot, value in pairs_of(slots))


def values_of(slots: Facts, slot: str) -> tuple[str, ...]:
    """All values of a slot; none where the facts don't have it."""
    value = slots.get(slot, ())
    return (value,) if isinstance(value, str) else value


def pairs_of(slots: Facts) -> tuple[tuple[str, str], ...]:
    """All (slot, value) pairs, in order. Their set is the meaning, whatever the order."""
    return tuple((slot, value) for slot in slots for value in values_of(slots, slot))
