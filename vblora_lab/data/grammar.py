"""A small grammar: facts about a place or a film -> English, in many wordings.

A `Domain` lists its slots; every value of a slot knows how to be said in three positions of a
sentence: before the noun (*adjective*), after it (*phrase*) or as what "it" does (*predicate*).
`describe` deals the facts out to those positions at random, so one set of facts has thousands of
wordings, all of which mention every fact exactly once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from vblora_lab.data.meaning import Facts, values_of
from vblora_lab.errors import DataError


@dataclass(frozen=True)
class Value:
    """One value of a slot and the ways to say it; alternatives are separated by ``|``.

    ``mentions`` is a regular expression, matched without case, that finds the value in any text,
    whoever wrote it; ``{}`` in any of the four stands for the value itself. ``hints`` is another,
    for wordings that may mean the value and may mean something else: they count where the value is
    expected, and are ignored where it isn't.
    """

    value: str
    adjective: str = ""
    phrase: str = ""
    predicate: str = ""
    mentions: str = ""
    hints: str = ""

    def ways(self, position: str) -> list[str]:
        text: str = getattr(self, position)
        return [way.replace("{}", self.value) for way in text.split("|")] if text else []


@lru_cache(maxsize=1024)
def _whole_words(source: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{source})(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Slot:
    """A slot of the meaning representation.

    values: the closed list of values, or a single `Value` with value ``"{}"`` for a slot whose
    values are names; place: whether its phrase may also open a sentence ("Near X, ..."); any_name:
    for a slot of names, the expression that finds whatever name a text gives for it, as its group
    ``name``.
    """

    key: str
    values: tuple[Value, ...]
    place: bool = False
    any_name: str = ""

    @property
    def is_open(self) -> bool:
        return self.values[0].value == "{}"

    def find(self, value: str) -> Value:
        """The `Value` for this text; an unlisted value is said and found as it is written."""
        template = self.values[0]
        if self.is_open:
            return Value(value, template.adjective, template.phrase, template.predicate)
        for candidate in self.values:
            if candidate.value.lower() == value.lower():
                return candidate
        return Value(value, mentions=re.escape(value))

    def pattern(self, value: str) -> re.Pattern[str]:
        """The expression that finds ``value`` in a text."""
        if self.is_open:
            return _whole_words(self.values[0].mentions.replace("{}", re.escape(value)))
        return _whole_words(self.find(value).mentions)

    def hint_pattern(self, value: str) -> re.Pattern[str] | None:
        """The expression for wordings that may mean ``value``; None where there are none."""
        hints = self.find(value).hints
        return _whole_words(hints) if hints else None


@dataclass(frozen=True)
class Domain:
    """A subject to write about: its nouns, its slots and its proper names.

    The slot named ``kind`` gives the noun ("pub"); ``nouns`` are used where the facts have none.
    """

    name: str
    kind: str
    nouns: tuple[str, ...]
    slots: tuple[Slot, ...]
    make_name: Callable[[random.Random], str]

    def slot(self, key: str) -> Slot | None:
        return next((slot for slot in self.slots if slot.key == key), None)


def draw_facts(domain: Domain, rng: random.Random) -> dict[str, str]:
    """Random facts: a name, and 2 to 7 further slots in the domain's own order."""
    others = list(domain.slots)
    chosen = set(rng.sample(range(len(others)), rng.randint(2, min(7, len(others)))))
    facts = {"name": domain.make_name(rng)}
    for number, slot in enumerate(others):
        if number in chosen:
            facts[slot.key] = (
                domain.make_name(rng) if slot.is_open else rng.choice(slot.values).value
            )
    return facts


def describe(domain: Domain, facts: Facts, rng: random.Random) -> str:
    """One to four English sentences that say every fact once.

    Raises `DataError` for a fact that the domain has no words for, and for a slot with several
    values.
    """
    facts = _one_value_each(facts)
    for key in facts:
        if key not in ("name", domain.kind) and not _ways(domain, key, facts, "predicate"):
            raise DataError(
                f"the domain {domain.name!r} has no words for {key}[{facts[key]}]; "
                f"its slots are {[slot.key for slot in domain.slots]}"
            )
    name = facts["name"]
    noun = rng.choice(_ways(domain, domain.kind, facts, "phrase") or list(domain.nouns))
    left = [key for key in facts if key not in ("name", domain.kind)]
    rng.shuffle(left)

    adjectives = _take(domain, facts, left, "adjective", rng.choice((0, 1, 1, 2)), rng)
    phrases = _take(domain, facts, left, "phrase", rng.choice((0, 1, 1, 2)), rng)
    group = with_article(" ".join([*adjectives, noun]))
    sentences = [_opening(domain, facts, left, name, group, _join_phrases(phrases), rng)]

    while left:
        predicates = _take(domain, facts, left, "predicate", rng.choice((1, 2, 2)), rng)
        subject = rng.choice(("It", "It", f"The {noun}", f"This {noun}", name))
        if len(sentences) > 1 and rng.random() < 0.3:
            predicates[0] = _with_also(predicates[0])
        sentences.append(f"{subject} {' and '.join(predicates)}.")
    return " ".join(sentences)


def _one_value_each(facts: Facts) -> dict[str, str]:
    for key in facts:
        if len(values_of(facts, key)) > 1:
            raise DataError(
                f"{key} has several values, {', '.join(values_of(facts, key))}; a generated text "
                "says one value of each slot, so choose one"
            )
    return {key: value for key, value in facts.items() if isinstance(value, str)}


def _opening(
    domain: Domain,
    facts: Mapping[str, str],
    left: list[str],
    name: str,
    group: str,
    phrases: str,
    rng: random.Random,
) -> str:
    """The first sentence, which brings in the name; may use up one more fact of ``left``."""
    style = rng.choice(("is", "is", "is", "there", "front", "apposition", "called"))
    if style == "there":
        return f"There is {group} called {name}{phrases}."
    if style == "called":
        return f"{name} is the name of {group}{phrases}."
    if style == "apposition" and left:
        predicate = _take(domain, facts, left, "predicate", 1, rng)[0]
        return f"{name}, {group}{phrases}, {predicate}."
    places = [key for key in left if (slot := domain.slot(key)) and slot.place]
    if style == "front" and places:
        left.remove(places[0])
        front = rng.choice(_ways(domain, places[0], facts, "phrase"))
        return f"{front[0].upper()}{front[1:]}, there is {group} called {name}{phrases}."
    return f"{name} is {group}{phrases}."


def _take(
    domain: Domain,
    facts: Mapping[str, str],
    left: list[str],
    position: str,
    count: int,
    rng: random.Random,
) -> list[str]:
    """Take up to ``count`` facts out of ``left`` that can be said in ``position``; say them."""
    taken = [key for key in left if _ways(domain, key, facts, position)][:count]
    for key in taken:
        left.remove(key)
    if position == "adjective":  # what the slots list first stands closest to the noun
        taken.sort(key=[slot.key for slot in domain.slots].index, reverse=True)
    return [rng.choice(_ways(domain, key, facts, position)) for key in taken]


def _ways(domain: Domain, key: str, facts: Mapping[str, str], position: str) -> list[str]:
    slot = domain.slot(key)
    return slot.find(facts[key]).ways(position) if slot and key in facts else []


def _join_phrases(phrases: list[str]) -> str:
    """Phrases after a noun, relative clauses last and joined by "and": " by the river that ..."."""
    clauses = [p for p in phrases if p.startswith(("that ", "where "))]
    plain = [p for p in phrases if p not in clauses]
    return "".join(f" {part}" for part in [*plain, " and ".join(clauses)] if part)


def _with_also(predicate: str) -> str:
    if predicate.startswith(("is ", "was ", "can ")):
        verb, rest = predicate.split(" ", 1)
        return f"{verb} also {rest}"
    return f"also {predicate}"


def with_article(group: str) -> str:
    """Put "a" or "an" before a noun group, by its first sound."""
    vowel = group[0].lower() in "aeio" and not group.startswith("one")
    return f"an {group}" if vowel else f"a {group}"
