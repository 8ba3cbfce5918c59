"""How far the slot error rate can be trusted, measured on human texts of cleaned E2E.

    python benchmarks/slot_errors.py devel.csv test.csv

Prints for each file the slot error rate of its human texts, which should be near 0, and how many
texts with a wrong meaning representation are found, which should be near 100%. Those are human
texts without an error whose meaning representation is changed in one place: a slot is taken out
(now the text adds it), a slot is put in (now the text misses it), or a value is exchanged for
another one of its slot.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vblora_lab.data import (
    Example,
    format_mr,
    get_domain,
    parse_mr,
    read_csv,
    slot_error_rate,
    slot_errors,
)
from vblora_lab.data.meaning import pairs_of

DOMAIN = get_domain("restaurants")
CHANGES = ("taken out", "put in", "exchanged")
Pair = tuple[str, str]  # slot and value


class Changed(NamedTuple):
    """A meaning representation that its text does not say; change: one of `CHANGES`."""

    mr: str
    text: str
    change: str
    slot: str

    @property
    def is_found(self) -> bool:
        return bool(slot_errors(DOMAIN, parse_mr(self.mr), self.text))


def human_rate(examples: Sequence[Example]) -> float:
    """The slot error rate of all human texts."""
    said = [(example.facts, text) for example in examples for text in example.references]
    return slot_error_rate(DOMAIN, [facts for facts, _ in said], [text for _, text in said])


def changed(examples: Sequence[Example], count: int, seed: int = 0) -> list[Changed]:
    """So many texts with a changed meaning representation, a third of them by each change.

    A name is exchanged, but not taken out, as every text is about something with a name. Raises
    ValueError where the examples have too few slots or values for a change.
    """
    rng = random.Random(seed)
    values: dict[str, list[str]] = defaultdict(list)
    for slot, value in sorted({pair for example in examples for pair in pairs_of(example.facts)}):
        values[slot].append(value)
    texts = [
        (pairs_of(example.facts), text)
        for example in examples
        for text in example.references
        if not slot_errors(DOMAIN, example.facts, text)
    ]
    made: list[Changed] = []
    for change in CHANGES:
        able = [(pairs, text) for pairs, text in texts if _choices(pairs, change, values)]
        if not able:
            raise ValueError(f"no text has a slot that could be {change}; give more examples")
        for _ in range((count + len(CHANGES) - 1 - CHANGES.index(change)) // len(CHANGES)):
            pairs, text = rng.choice(able)
            slot, new = rng.choice(_choices(pairs, change, values))
            if change != "taken out":
                new = [*new, (slot, rng.choice(_others(pairs, slot, values)))]
            mr = ", ".join(format_mr({key: value}) for key, value in new)
            made.append(Changed(mr, text, change, slot))
    return made


def _choices(
    pairs: Sequence[Pair], change: str, values: Mapping[str, list[str]]
) -> list[tuple[str, list[Pair]]]:
    """The slots that can be changed so, each with the pairs that stay as they are."""
    slots = {slot for slot, _ in pairs}
    if change == "put in":
        return [(slot, list(pairs)) for slot in values if slot not in slots]
    if change == "taken out":
        others = sorted(slots - {"name"})
        return [(slot, [pair for pair in pairs if pair[0] != slot]) for slot in others]
    return [
        (slot, [pair for pair in pairs if pair != (slot, value)])
        for slot, value in pairs
        if _others(pairs, slot, values)
    ]


def _others(pairs: Sequence[Pair], slot: str, values: Mapping[str, list[str]]) -> list[str]:
    return [value for value in values[slot] if (slot, value) not in pairs]


def main() -> None:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="CSV with the columns mr and ref")
    parser.add_argument("--count", type=int, default=2000, help="texts to change in each file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for file in args.files:
        examples = read_csv(file)
        wrong = changed(examples, args.count, args.seed)
        found = [one for one in wrong if one.is_found]
        print(f"{file.name}: {human_rate(examples):.2%} of the slots of human texts are errors")
        print(f"  {len(found) / len(wrong):.1%} of {len(wrong)} changed texts are found")
        for name in CHANGES:
            of_change = [one for one in wrong if one.change == name]
            missed = Counter(one.slot for one in of_change if not one.is_found)
            share = 1 - missed.total() / len(of_change)
            print(f"  {name}: {share:.1%}; not found: {dict(missed.most_common()) or 'none'}")


if __name__ == "__main__":
    main()
