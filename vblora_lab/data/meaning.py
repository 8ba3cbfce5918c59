"""Meaning representations, written as the E2E NLG challenge writes them.

A meaning representation (MR) is a flat list of slots, ``name[Blue Spice], eatType[pub]``: what a
text has to say. Format: Novikova, Dusek and Rieser, "The E2E Dataset: New Challenges For
End-to-End Generation" (2017), arXiv 1706.09254.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vblora_lab.errors import DataError

_SLOT = re.compile(r"\s*([^\[\],]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")


def parse_mr(mr: str) -> dict[str, str]:
    """Read ``"name[Blue Spice], area[riverside]"`` into ``{"name": "Blue Spice", ...}``.

    Slots keep their order; a repeated slot keeps its last value. Raises `DataError` where the text
    is not a list of ``slot[value]`` and names the place at which reading stopped.
    """
    slots: dict[str, str] = {}
    position = 0
    while position < len(mr):
        match = _SLOT.match(mr, position)
        if match is None:
            raise DataError(
                f"not a meaning representation at character {position}: {mr[position:][:40]!r}. "
                "Write slots as 'name[Blue Spice], area[riverside]'."
            )
        slots[match.group(1)] = match.group(2).strip()
        position = match.end()
    if not slots:
        raise DataError(
            f"the meaning representation {mr!r} has no slot. "
            "Write slots as 'name[Blue Spice], area[riverside]'."
        )
    return slots


def format_mr(slots: Mapping[str, str]) -> str:
    """Write slots as one MR; the inverse of `parse_mr`."""
    return ", ".join(f"{slot}[{value}]" for slot, value in slots.items())
