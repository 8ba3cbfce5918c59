"""The prose that mini-OPT is pretrained on: documents about restaurants, hotels, museums and films.

Each document talks about the same facts more than once and in different wordings, so that a model
that reads it must learn to carry names and facts along: as a review told twice, an interview with
a summary, notes and the text written from them, a search with a happy end, or two places side by
side. None of it is in the ``slot[value]`` format of the fine-tuning task, which the model must not
have seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from vblora_lab.data.domains import DOMAINS
from vblora_lab.data.grammar import Domain, Slot, describe, draw_facts
from vblora_lab.data.names import person_name

Facts = dict[str, str]

# What one asks about a slot, and what one calls it in notes.
_QUESTIONS: dict[str, tuple[str, str]] = {
    "eatType": ("What sort of place is it?", "sort of place"),
    "type": ("What exactly is it?", "sort"),
    "food": ("What food do they have?", "food"),
    "priceRange": ("What are the prices like?", "price range"),
    "customer rating": ("What do its customers think of it?", "customer rating"),
    "viewer rating": ("What do its viewers think of it?", "viewer rating"),
    "area": ("Which part of town is that in?", "area"),
    "familyFriendly": ("Can one bring children?", "family-friendly"),
    "near": ("What is it near?", "nearest neighbour"),
    "rooms": ("Is it a large house?", "size"),
    "breakfast": ("Do they serve breakfast?", "breakfast"),
    "parking": ("Is there a car park?", "parking"),
    "subject": ("What is it about?", "subject"),
    "entry": ("Does one have to pay?", "entry"),
    "guidedTours": ("Are there guided tours?", "guided tours"),
    "country": ("Where was it made?", "country"),
    "decade": ("How old is it?", "decade"),
    "length": ("Is it long?", "length"),
    "colour": ("Is it in colour?", "colour"),
}


def _review(domain: Domain, facts: Facts, rng: random.Random) -> str:
    person, other = person_name(rng), person_name(rng)
    first, second = describe(domain, facts, rng), describe(domain, facts, rng)
    link = rng.choice(
        (
            f"{person} told {other} about it, and {other} put it this way:",
            f"In other words, as {person} likes to say:",
            f"{other} heard this from {person} and wrote it down:",
            "The same in other words:",
            "Put another way:",
        )
    )
    return f"{first} {link} {second}"


def _interview(domain: Domain, facts: Facts, rng: random.Random) -> str:
    person, other = person_name(rng), person_name(rng)
    name = facts["name"]
    lines = [
        rng.choice(
            (
                f"{person} asked {other} about {name}.",
                f'"Do you know {name}?" asked {person}. "Of course," said {other}.',
                f"{person} had never been to {name}, and {other} knew it well.",
            )
        )
    ]
    for key in _shuffled(facts, rng):
        lines.append(f'"{_QUESTIONS[key][0]}" "{_answer(domain, key, facts[key], rng)}"')
    link = rng.choice(
        (
            f"So this is what {person} wrote:",
            f"Then {person} told everybody:",
            "All in all:",
            f"This is what {person} remembers:",
        )
    )
    return " ".join([*lines, link, describe(domain, facts, rng)])


def _notes(domain: Domain, facts: Facts, rng: random.Random) -> str:
    person = person_name(rng)
    name = facts["name"]
    start = rng.choice(
        (
            f"{person} took notes about {name}:",
            f"Notes on {name}.",
            f"{person} filled in a card. Name: {name};",
            f"What {person} knows about {name}:",
        )
    )
    keys = _shuffled(facts, rng)
    if rng.random() < 0.5:
        notes = "; ".join(f"{_QUESTIONS[key][1]}: {facts[key]}" for key in keys) + "."
    else:
        notes = " ".join(f"The {_QUESTIONS[key][1]} is {facts[key]}." for key in keys)
    link = rng.choice(
        (
            "The text made from them:",
            "Written out in full:",
            f"From this {person} made a text:",
            "That is:",
        )
    )
    return f"{start} {notes} {link} {describe(domain, facts, rng)}"


def _search(domain: Domain, facts: Facts, rng: random.Random) -> str:
    person, other = person_name(rng), person_name(rng)
    name = facts["name"]
    noun = rng.choice(domain.nouns)
    return " ".join(
        (
            rng.choice(
                (
                    f"{person} was looking for a {noun}, and {other} said: go to {name}!",
                    f"{other} once told {person} the story of {name}.",
                    f"One day {person} and {other} were talking about {name}.",
                )
            ),
            describe(domain, facts, rng),
            rng.choice(
                (
                    f"{person} thought about it for a while.",
                    f"It was late, and {person} was tired.",
                    f'"That sounds right," said {person}.',
                    f'"I am not sure," said {person}.',
                )
            ),
            rng.choice(
                (
                    f"The next day {person} remembered only this much:",
                    f"{person} wrote to a friend:",
                    f"So {person} said it again:",
                )
            ),
            describe(domain, facts, rng),
        )
    )


def _pair(domain: Domain, facts: Facts, rng: random.Random) -> str:
    other = draw_facts(domain, rng)
    both = [facts, other]
    first = " ".join(describe(domain, one, rng) for one in both)
    rng.shuffle(both)
    link = rng.choice(("Once more, and slowly:", "To say it again:", "In other words:"))
    return f"{first} {link} {' '.join(describe(domain, one, rng) for one in both)}"


_KINDS: tuple[Callable[[Domain, Facts, random.Random], str], ...] = (
    _review,
    _interview,
    _notes,
    _search,
    _pair,
)


def document(rng: random.Random) -> str:
    """One document of about 50 to 200 words."""
    domain = rng.choice(list(DOMAINS.values()))
    return rng.choice(_KINDS)(domain, draw_facts(domain, rng), rng)


def _shuffled(facts: Facts, rng: random.Random) -> list[str]:
    keys = [key for key in facts if key != "name"]
    rng.shuffle(keys)
    return keys


def _answer(domain: Domain, key: str, value: str, rng: random.Random) -> str:
    """The bare value, or a sentence that says it: "Italian." or "It serves Italian food."."""
    slot = domain.slot(key)
    assert isinstance(slot, Slot)
    predicates = slot.find(value).ways("predicate")
    if predicates and rng.random() < 0.5:
        return f"It {rng.choice(predicates)}."
    return f"{value[0].upper()}{value[1:]}."
