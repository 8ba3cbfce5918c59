"""A task: pairs of what a model is given and what it is to say, in three splits.

Data to text: a meaning representation is given. `data.instructions` has tasks that ask otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vblora_lab.data.grammar import Domain, describe, draw_facts
from vblora_lab.data.meaning import format_mr, pairs_of, parse_mr
from vblora_lab.errors import DataError

TRAIN_PAIRS = 4800
HELD_OUT = 300
REFERENCES = 3  # held-out meaning representations have several references, as in E2E


@dataclass(frozen=True)
class Example:
    """A meaning representation (`format_mr`'s text) and the texts that say it."""

    mr: str
    references: tuple[str, ...]

    @property
    def facts(self) -> dict[str, str | tuple[str, ...]]:
        """Slot -> value, or a tuple of them where the slot has several, as `parse_mr` reads it."""
        return parse_mr(self.mr)


@dataclass(frozen=True)
class Task:
    """Three splits that share no meaning representation, and the domain that scores the texts."""

    name: str
    domain: Domain
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def pairs(self) -> int:
        """The number of (meaning representation, reference) pairs in all splits."""
        splits = (self.train, self.validation, self.test)
        return sum(len(example.references) for split in splits for example in split)


def make_task(domain: Domain, *, seed: int = 0) -> Task:
    """Generate a task of `TRAIN_PAIRS` + 2 x `HELD_OUT` distinct MRs from a seed."""
    rng = random.Random(f"{domain.name}/{seed}")
    seen: set[frozenset[tuple[str, str]]] = set()

    def draw(count: int, references: int) -> tuple[Example, ...]:
        examples: list[Example] = []
        while len(examples) < count:
            facts = draw_facts(domain, rng)
            if frozenset(facts.items()) in seen:
                continue
            seen.add(frozenset(facts.items()))
            texts = tuple(describe(domain, facts, rng) for _ in range(references))
            examples.append(Example(format_mr(facts), texts))
        return tuple(examples)

    return Task(
        domain.name,
        domain,
        train=draw(TRAIN_PAIRS, 1),
        validation=draw(HELD_OUT, REFERENCES),
        test=draw(HELD_OUT, REFERENCES),
    )


def group_examples(pairs: Iterable[tuple[str, str]]) -> tuple[Example, ...]:
    """One example for all (MR, reference) pairs whose MRs say the same, in any order.

    MRs say the same where all their values are the same, those of slots with several included.
    """
    groups: dict[frozenset[tuple[str, str]], tuple[str, list[str]]] = {}
    for mr, reference in pairs:
        groups.setdefault(frozenset(pairs_of(parse_mr(mr))), (mr, []))[1].append(reference)
    return tuple(Example(mr, tuple(references)) for mr, references in groups.values())


def split_examples(
    name: str, domain: Domain, examples: Sequence[Example], *, seed: int = 0
) -> Task:
    """Split by meaning representation: a tenth (at least 1) to validation, as many to test."""
    if len(examples) < 3:
        raise DataError(
            f"{name}: {len(examples)} different meaning representations or prompts are too few to "
            "split into train, validation and test; give at least 3"
        )
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    held_out = min(max(1, len(shuffled) // 10), HELD_OUT)
    return Task(
        name,
        domain,
        train=tuple(shuffled[2 * held_out :]),
        validation=tuple(shuffled[:held_out]),
        test=tuple(shuffled[held_out : 2 * held_out]),
    )
