"""Exercises of notebook 05: injection."""

from __future__ import annotations

import re
from typing import Any

from vblora_lab.course.exercise import Exercise, Wrong, equals

KINDS = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2",
]  # fmt: skip
LAYERS = "model.decoder.layers"
NAMES = [
    "model.decoder.embed_tokens",
    *(f"{LAYERS}.{layer}.{kind}" for layer in range(6) for kind in KINDS),
    "lm_head",
]
WANTED = [f"{LAYERS}.{layer}.{kind}" for layer in (4, 5) for kind in ("fc1", "fc2")]


def _check_regex(answer: Any) -> None:
    if not isinstance(answer, str):
        raise Wrong(f"the answer is a string; this is a {type(answer).__name__}.")
    try:
        expression = re.compile(answer)
    except re.error as error:
        raise Wrong(f"{answer!r} is no regular expression: {error}.") from error
    chosen = [name for name in NAMES if expression.fullmatch(name)]
    if not chosen and any(expression.search(name) for name in NAMES):
        raise Wrong(
            f"{answer!r} matches a part of some names, but never a whole name. Begin with '.*' for "
            "what comes before."
        )
    missing = [name for name in WANTED if name not in chosen]
    extra = [name for name in chosen if name not in WANTED]
    problems = []
    if missing:
        problems.append(f"it misses {len(missing)} of the 4, for example {missing[0]}")
    if extra:
        problems.append(f"it also matches {extra[0]}" + _and_more(len(extra) - 1))
    if problems:
        raise Wrong("; ".join(problems) + ".")


def _and_more(number: int) -> str:
    return f" and {number} more" if number else ""


EXERCISES = [
    Exercise(
        "05-count",
        hint="Which of the six layers are counted, and which modules in each of them?",
        checker=equals(
            4,
            {
                12: "that is both modules in all six layers; layers_to_transform leaves two.",
                2: "two layers, yes, but two modules in each.",
                6: "one kind of module in every layer? It is two kinds, in two layers.",
                8: "the list names the layers to adapt, not those to leave out.",
                10: "the list names two layers; it is no range.",
            },
        ),
        because="two modules in each of the layers 0 and 5.",
        solution="answer = 2 * 2",
    ),
    Exercise(
        "05-regex",
        hint="Write what may vary in brackets: (4|5) for the layer, fc(1|2) for the module. "
        "A dot that is meant as a dot is written \\. and '.*' stands for anything before.",
        checker=_check_regex,
        because="it matches those 4 names as a whole, and no other of the 38 in the list.",
        solution='answer = r".*\\.layers\\.(4|5)\\.fc(1|2)"',
    ),
    Exercise(
        "05-length",
        hint="It must divide every input size and every output size: 256, 1024 and 640.",
        checker=equals(
            128,
            {
                256: "256 doesn't divide 640.",
                64: "64 divides all three, but a larger one does too.",
                32: "32 divides all three, but a larger one does too.",
                640: "640 doesn't divide 256.",
                1024: "1024 doesn't divide 256.",
            },
        ),
        because="it is the greatest common divisor of 256, 1024 and 640; all divisors of 128 fit "
        "as well.",
        solution="import math\n\nanswer = math.gcd(256, 1024, 640)",
    ),
]
