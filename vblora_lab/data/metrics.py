"""How good a text is: slot error rate, and BLEU through sacrebleu.

The slot error rate of a set of texts is (missing + wrong + added) / slots, summed over the set, as
in Dusek, Howcroft and Rieser, "Semantic Noise Matters for Neural NLG" (2019), arXiv 1911.03905.
Values are found by the domain's regular expressions (`Value.mentions` and `Value.hints`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from vblora_lab.data.grammar import Domain, Slot
from vblora_lab.data.meaning import Facts, pairs_of, values_of
from vblora_lab.data.mentions import values_said


def slot_errors(domain: Domain, facts: Facts, text: str) -> tuple[str, ...]:
    """What a text gets wrong: ``("missing area[riverside]", "added food[Thai]", ...)``.

    A value that is absent counts once: as wrong where another value of its slot is said, as missing
    otherwise. A value that the facts don't have, beside or instead of those that they do, is an
    addition, one for each slot; where the facts have no neighbour, so is any that the text names.
    Words that may mean several values ("reasonably priced") are never held against a text. The
    names in the facts ("Cheap Anchor") are taken out before the other slots are looked for.
    """
    errors: list[str] = []
    plain = _without_names(domain, facts, text)
    for key in facts:
        slot, values = domain.slot(key), values_of(facts, key)
        if slot is None or slot.is_open:
            errors += [f"missing {key}[{v}]" for v in values if not _says(slot, v, text)]
        else:
            errors += _closed_slot_errors(slot, values, plain)
    for slot in domain.slots:
        if slot.key in facts:
            continue
        errors += _added_name(slot, plain) if slot.is_open else _closed_slot_errors(slot, (), plain)
    return tuple(errors)


def slot_error_rate(domain: Domain, facts: Sequence[Facts], texts: Sequence[str]) -> float:
    """Slot errors per slot over a set; 0 is perfect, and more than 1 is possible.

    A slot with several values counts once for each. NaN where there are no slots at all, as of
    instructions.
    """
    slots = sum(len(pairs_of(one)) for one in facts)
    errors = sum(
        len(slot_errors(domain, one, text)) for one, text in zip(facts, texts, strict=True)
    )
    return errors / slots if slots else math.nan


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100, of texts against one or more references each (sacrebleu's default)."""
    import sacrebleu  # here, so that reading data does not need it

    most = max(len(group) for group in references)
    # sacrebleu wants one stream per reference number; None where a text has fewer references.
    streams: Any = [[g[i] if i < len(g) else None for g in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(texts), streams).score)


def _says(slot: Slot | None, value: str, text: str) -> bool:
    if slot is not None:
        return slot.pattern(value).search(text) is not None
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def _closed_slot_errors(slot: Slot, values: Sequence[str], text: str) -> list[str]:
    """Each absent value is wrong as long as there is another to take its place, then missing."""
    said, others = values_said(slot, values, text)
    absent = [value for value in values if value not in said]
    if not absent:
        return [f"added {slot.key}[{value}]" for value in others[:1]]
    wrong = [
        f"wrong {slot.key}[{value}]: says {other}"
        for value, other in zip(absent, others, strict=False)
    ]
    return [*wrong, *(f"missing {slot.key}[{value}]" for value in absent[len(others) :])]


def _added_name(slot: Slot, text: str) -> list[str]:
    found = re.search(slot.any_name, text) if slot.any_name else None
    return [f"added {slot.key}[{found['name']}]"] if found else []


def _without_names(domain: Domain, facts: Facts, text: str) -> str:
    for key, value in pairs_of(facts):
        slot = domain.slot(key)
        if slot is None or slot.is_open:
            text = re.sub(re.escape(value), "…", text, flags=re.IGNORECASE)
    return text
