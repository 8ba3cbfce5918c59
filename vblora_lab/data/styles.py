"""Users who want the same facts said each in a way of their own, and whose way a text is in.

A style is other names for the fields, a greeting and a farewell, more fields or fewer. So whose
text this is can be counted, mark by mark, without anybody's judgement.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from vblora_lab.data.domains import RESTAURANTS
from vblora_lab.data.grammar import Slot
from vblora_lab.data.meaning import Facts, format_mr, values_of
from vblora_lab.data.task import Example
from vblora_lab.errors import ConfigError

# All words are ones that mini-OPT writes: what is learned is a style, and not how words are spelt.
GREETINGS = (
    "Old friend,", "Young friend,", "Happy guest,", "Early guest,", "Lucky guest,", "In short,",
    "All told,", "That said,", "Once more,", "There you are,",
)  # fmt: skip
FAREWELLS = (
    "That is all.", "All are welcome.", "The world knows.", "That was good.", "There is more.",
    "Then ask again.", "Then sleep well.", "That is the story.", "The room is for you.",
    "Once and again.",
)  # fmt: skip
FIELDS = {
    "food": ("food", "menu", "dishes", "they serve"),
    "priceRange": ("price", "cost", "charges", "you pay"),
    "customer rating": ("rating", "they say", "rated", "view"),
    "area": ("area", "where", "district", "stands"),
}
MOST = len(GREETINGS) * len(FAREWELLS)  # users, no two of whom have both in common


class Style(NamedTuple):
    """How a user wants facts to be said.

    Attributes:
        greeting, farewell: begin and end of each text.
        names: the user's own name of each field.
        length: how many fields are said at most.
    """

    greeting: str
    farewell: str
    names: Mapping[str, str]
    length: int

    def said(self, facts: Facts) -> list[str]:
        """The fields that the user wants, by their own names."""
        there = [(own, values_of(facts, key)) for key, own in self.names.items()]
        return [f"{own}: {values[0]}" for own, values in there if values][: self.length]

    def text(self, facts: Facts) -> str:
        """The facts as this user wants to read them."""
        parts = [*values_of(facts, "name")[:1], *self.said(facts)]
        return f"{self.greeting} {', '.join(parts)}. {self.farewell}"

    def example(self, facts: Facts) -> Example:
        """The facts, and this text, to train on."""
        return Example(format_mr(facts), (self.text(facts),))

    def share(self, text: str, facts: Facts) -> float:
        """From 0 to 1: how much of the style a text has. Each mark counts the same."""
        wanted = self.said(facts)
        marks = [text.startswith(self.greeting), text.endswith(self.farewell)]
        marks += [field in text for field in wanted]
        marks.append(text.count(": ") == len(wanted))
        return sum(marks) / len(marks)


def styles(count: int, seed: int) -> list[Style]:
    """Of so many users; no two have the same greeting and farewell.

    Raises:
        ConfigError: there are not so many styles.
    """
    if not 0 < count <= MOST:
        raise ConfigError(f"count={count}: must be from 1 to {MOST}, the number of styles.")
    rng = random.Random(seed)
    pairs = rng.sample([(g, f) for g in GREETINGS for f in FAREWELLS], count)
    return [
        Style(g, f, {key: rng.choice(FIELDS[key]) for key in FIELDS}, rng.choice((1, 2, 3, 4)))
        for g, f in pairs
    ]


def facts_for(count: int, seed: int, fields: Sequence[str] = tuple(FIELDS)) -> list[dict[str, str]]:
    """So many restaurants with a name and these fields, drawn from the task."""
    rng = random.Random(seed)
    slots = {key: _slot(key) for key in fields}
    return [
        {
            "name": RESTAURANTS.make_name(rng),
            **{key: rng.choice(slot.values).value for key, slot in slots.items()},
        }
        for _ in range(count)
    ]


def _slot(key: str) -> Slot:
    return next(slot for slot in RESTAURANTS.slots if slot.key == key)


def shares(
    users: Sequence[Style], facts: Sequence[Facts], texts: Sequence[Sequence[str]]
) -> list[list[float]]:
    """By user who was served and user whose style is looked for: the mean share of its marks.

    Args:
        users: all of them.
        facts: what was said.
        texts: for each of the facts, what each who was served got.
    """
    return [
        [fmean(style.share(text, f) for text, f in zip(got, facts, strict=True)) for style in users]
        for got in zip(*texts, strict=True)
    ]
