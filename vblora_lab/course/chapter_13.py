"""Exercises of notebook 13: instructions."""

from __future__ import annotations

from typing import Any

from vblora_lab.course.exercise import Exercise, Wrong, called, equals

PROMPT, ANSWER = 52, 18  # tokens; the answer's count its text alone
MESSAGES, BATCH, STEPS = 120, 4, 60

LINES = {
    "task | who: Ana | what: call the bank": {"who": "Ana", "what": "call the bank"},
    "meeting | where: room 4 | when: Monday at 10:30": {
        "where": "room 4",
        "when": "Monday at 10:30",
    },
    "expense | who: - | amount: 9 EUR": {"who": "-", "amount": "9 EUR"},
}


def _check_fields(answer: Any) -> None:
    for line, expected in LINES.items():
        result = called(answer, line)
        if not isinstance(result, dict):
            raise Wrong(f"this gives a {type(result).__name__}; give a dict, field -> value.")
        if result == expected:
            continue
        if "kind" in result or line.split(" | ")[0] in result:
            raise Wrong("the kind of record, before the first bar, is no field: leave it out.")
        if result.get("when") == "Monday at 10":
            raise Wrong("cut at the first colon alone: the time has one too.")
        raise Wrong(f"of {line!r} it makes {result}; it should be {expected}.")


EXERCISES = [
    Exercise(
        "13-loss",
        hint="Which tokens is the model to learn to write? How does it know when to stop?",
        checker=equals(
            ANSWER + 1,
            {
                PROMPT + ANSWER + 1: "the question is given: the model needn't learn to ask it.",
                PROMPT + ANSWER: "the question is given: the model needn't learn to ask it.",
                ANSWER: "the end of the answer has to be learned too, or it never stops.",
                PROMPT: "that is the question, which is given.",
            },
        ),
        because="the 18 of the text and the one that ends the turn.",
        solution="answer = 18 + 1",
    ),
    Exercise(
        "13-passes",
        hint="How many messages do all steps take together?",
        checker=equals(
            STEPS * BATCH / MESSAGES,
            {
                STEPS * BATCH: "that is how many messages are seen, repeated ones counted again.",
                MESSAGES / BATCH: "that is how many steps one pass takes.",
                STEPS / MESSAGES: "each step takes four messages.",
            },
        ),
        because="60 steps of 4 are 240 messages, so each of the 120 is seen twice.",
        solution="answer = 60 * 4 / 120",
    ),
    Exercise(
        "13-fields",
        hint='line.split(" | ") gives the kind and the fields; part.split(": ", 1) or '
        'part.partition(": ") cuts one field at its first colon.',
        checker=_check_fields,
        because="with it, a program counts what is right: form and fields, not an impression.",
        solution="def answer(line):\n"
        '    kind, *parts = line.split(" | ")\n'
        '    return dict(part.split(": ", 1) for part in parts)',
    ),
]
