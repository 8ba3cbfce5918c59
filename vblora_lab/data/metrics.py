"""How good a text is: slot error rate, and BLEU through sacrebleu.

The slot error rate of a set of texts is (missing + wrong + added) / slots, summed over the set, as
in Dusek, Howcroft and Rieser, "Semantic Noise Matters for Neural NLG" (2019), arXiv 1911.03905.
Slots are found by the domain's regular expressions (`Value.mentions`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vblora_lab.data.grammar import Domain, Slot


def slot_errors(domain: Domain, facts: Mapping[str, str], text: str) -> tuple[str, ...]:
    """What a text gets wrong: ``("missing area[riverside]", "added food[Thai]", ...)``.

    A slot whose value is absent counts once: as wrong where another value of it is said, as missing
    otherwise. A second value for a slot, or one for a slot that the facts don't have, is an
    addition. The names in the facts ("Cheap Anchor") are taken out before the other slots are
    looked for.
    """
    errors = []
    plain = _without_names(domain, facts, text)
    for key in facts:
        slot = domain.slot(key)
        if slot is None or slot.is_open:
            if not _says(slot, facts[key], text):
                errors.append(f"missing {key}[{facts[key]}]")
            continue
        said = _values_said(slot, facts[key], plain)
        others = [value for value in said if value != facts[key]]
        if facts[key] in said:
            errors += [f"added {key}[{value}]" for value in others[:1]]
        elif others:
            errors.append(f"wrong {key}[{facts[key]}]: says {others[0]}")
        else:
            errors.append(f"missing {key}[{facts[key]}]")
    for slot in domain.slots:
        if slot.key not in facts and not slot.is_open:
            errors += [f"added {slot.key}[{value}]" for value in _values_said(slot, "", plain)[:1]]
    return tuple(errors)


def slot_error_rate(
    domain: Domain, facts: Sequence[Mapping[str, str]], texts: Sequence[str]
) -> float:
    """Slot errors per slot over a set; 0 is perfect, and more than 1 is possible."""
    errors = sum(
        len(slot_errors(domain, one, text)) for one, text in zip(facts, texts, strict=True)
    )
    return errors / sum(len(one) for one in facts)


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


def _values_said(slot: Slot, expected: str, text: str) -> list[str]:
    """The values of a slot that a text mentions, in the slot's order.

    A mention inside a longer mention of another value does not count: "not family-friendly" says
    no, and not also yes.
    """
    values = [value.value for value in slot.values]
    if expected and expected not in values:
        values.append(expected)
    spans = [
        (value, match.span()) for value in values for match in slot.pattern(value).finditer(text)
    ]
    said = {
        value
        for value, (start, end) in spans
        if not any(
            other != value and s <= start and end <= e and e - s > end - start
            for other, (s, e) in spans
        )
    }
    return [value for value in values if value in said]


def _without_names(domain: Domain, facts: Mapping[str, str], text: str) -> str:
    for key, value in facts.items():
        slot = domain.slot(key)
        if slot is None or slot.is_open:
            text = re.sub(re.escape(value), "…", text, flags=re.IGNORECASE)
    return text
