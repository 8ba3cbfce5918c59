"""Exercises of notebook 10: your model, your data."""

from __future__ import annotations

from typing import Any

from vblora_lab.course.exercise import Exercise, Wrong, called, equals

RECORD = {"name": "The Kettle", "food": "Thai", "area": "riverside"}
PAIRS, BATCH, EPOCHS = 1200, 8, 3


def _check_mr(answer: Any) -> None:
    from vblora_lab.data import parse_mr
    from vblora_lab.errors import DataError

    other = {"near": "the station", "name": "Aroma"}  # nothing of one record may be built in
    for record in (RECORD, other):
        result = called(answer, dict(record))
        if not isinstance(result, str):
            raise Wrong(f"this gives a {type(result).__name__}; a meaning representation is text.")
        try:
            found = parse_mr(result)
        except DataError as error:
            raise Wrong(f"for {record} it gives {result!r}: {error}") from error
        if found != record:
            raise Wrong(f"{result!r} is read as {found}, but the record is {record}.")


EXERCISES = [
    Exercise(
        "10-mr",
        hint="A slot is key[value]. Make one for each item of the record, and join them with "
        "a comma and a space.",
        checker=_check_mr,
        because="each slot is key[value], with commas between them, in the order of the record. "
        "vblora_lab.data.format_mr does the same.",
        solution="def answer(record):\n"
        '    return ", ".join(f"{key}[{value}]" for key, value in record.items())',
    ),
    Exercise(
        "10-steps",
        hint="How many steps does one pass over all pairs take?",
        checker=equals(
            EPOCHS * PAIRS // BATCH,
            {
                PAIRS // BATCH: "that is one pass.",
                EPOCHS * PAIRS: "that would be so with one pair per step.",
                EPOCHS * PAIRS * BATCH: "a step takes a batch of pairs, so there are fewer steps "
                "than pairs, not more.",
            },
        ),
        because="a step takes 8 of 1,200 pairs, so one pass is 150 steps.",
        solution="answer = 3 * 1200 // 8",
    ),
    Exercise(
        "10-resume",
        hint="Which is the newest checkpoint at step 137? Where does the run go on?",
        checker=equals(
            37,
            {
                100: "that is where it goes on; the question is how many steps are done again.",
                137: "the checkpoint of step 100 is whole; only what came after it is lost.",
                13: "that is what was missing to the next checkpoint, which was never written.",
                63: "that is how many steps are left to step 200.",
                87: "that goes back to step 50; there is a newer checkpoint.",
            },
        ),
        because="the newest checkpoint is that of step 100. With save_every=10 it would be 7.",
        solution="answer = 137 - 100",
    ),
    Exercise(
        "10-processes",
        hint="batch_size counts the pairs of a step, wherever they are computed.",
        checker=equals(
            4,
            {
                16: "that is the batch of all processes together.",
                64: "batch_size is not per process; the processes share it.",
            },
        ),
        because="four processes share each batch of 16, so that the run is the same run, faster.",
        solution="answer = 16 // 4",
    ),
]
