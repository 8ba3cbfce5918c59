"""Exercises of notebook 05: injection."""

from __future__ import annotations

import re
from typing import Any

from vblora_lab.course.exercise import Exercise, Wrong, equals

WANTED = [f"model.decoder.layers.{layer}.{kind}" for layer in (4, 5) for kind in ("fc1", "fc2")]


def _check_regex(answer: Any) -> None:
    from vblora_lab.bases import load_skeleton

    if not isinstance(answer, str):
        raise Wrong(f"the answer is a string; this is of type {type(answer).__name__}.")
    try:
        expression = re.compile(answer)
    except re.error as error:
        raise Wrong(f"{answer!r} is no regular expression: {error}.") from error
    # All modules, the norms between the linear layers too: what is matched would be adapted.
    names = [name for name, _ in load_skeleton("mini-opt").named_modules() if name]
    chosen = [name for name in names if expression.fullmatch(name)]
    if not chosen and any(expression.search(name) for name in names):
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
        hint="Write what may vary in brackets, with a bar between: (q|k) is q or k. A dot that is "
        "meant as a dot is written \\. and '.*' at the beginning stands for anything before.",
        checker=_check_regex,
        because="it matches those 4 names as a whole, and no other module of the model.",
        solution='answer = r".*\\.layers\\.(4|5)\\.fc(1|2)"',
    ),
    Exercise(
        "05-length",
        hint="It must divide every input size and every output size: 256, 1024 and 640.",
        checker=equals(
            128,
            {
                256: "it doesn't divide 640.",
                512: "it divides neither 256 nor 640.",
                640: "it doesn't divide 256.",
                1024: "it doesn't divide 256.",
                **dict.fromkeys(
                    (1, 2, 4, 8, 16, 32, 64), "it divides all three, but a larger one does too."
                ),
            },
        ),
        because="it is the greatest common divisor of 256, 1024 and 640; all divisors of 128 fit "
        "as well.",
        solution="import math\n\nanswer = math.gcd(256, 1024, 640)",
    ),
]
