"""Exercises of notebook 08: VB-LoRA against the others."""

from __future__ import annotations

import math
from typing import Any

from vblora_lab.course.exercise import Exercise, Wrong, called, equals

RANK, STORED = 16, 1_769_472  # of the LoRA in the question, and its bytes
IN, OUT, VERA_RANK = 1024, 4096, 256
LOSSES = (0.42, 0.44, 0.46)
DEVIATION = 0.02  # of LOSSES
POINTS = {
    "a": (100, 0.50), "b": (200, 0.40), "c": (300, 0.45), "d": (400, 0.40), "e": (500, 0.30),
}  # fmt: skip
FRONT = {"a", "b", "e"}


def _check_front(answer: Any) -> None:
    given = called(answer, dict(POINTS))
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise Wrong(f"give the names, in a list or a set; this gives a {type(given).__name__}.")
    names = called(lambda: list(given))  # a generator runs only now
    if not all(isinstance(name, str) for name in names):
        raise Wrong(f"give the names alone; this gives {names!r}.")
    given = set(names)
    if given == set(POINTS) - FRONT:
        raise Wrong("those are the ones that are beaten; the question is about the others.")
    if given == FRONT | {"d"}:
        raise Wrong(
            "d has the loss of b, and stores more: no worse in one and better in the other is "
            "enough to beat it."
        )
    if not given:
        raise Wrong("nothing is left: does every method beat itself?")
    if given != FRONT:
        problems = []
        if missing := sorted(FRONT - given):
            problems.append(f"you left out {missing}, which nobody beats")
        if extra := sorted(given - FRONT):
            problems.append(f"you kept {extra}, which do not belong there")
        raise Wrong(f"of {POINTS}, {' and '.join(problems)}.")


EXERCISES = [
    Exercise(
        "08-vera",
        hint="The two random matrices are frozen. One vector scales the rank, another the output.",
        checker=equals(
            VERA_RANK + OUT,
            {
                VERA_RANK * (IN + OUT): "those are the two random matrices; they are drawn, and "
                "not trained.",
                IN + OUT: "the vectors scale what comes out of A, which is r numbers, and what "
                "comes out of B.",
                VERA_RANK + IN: "d scales what comes out of A, b what comes out of B; none scales "
                "the input.",
                VERA_RANK + IN + OUT: "nothing scales the input.",
                2 * VERA_RANK: "one of them scales the output, which is longer than r.",
                VERA_RANK: "that is d alone; b scales the output.",
                OUT: "that is b alone; d scales what comes out of A.",
            },
        ),
        because="r numbers between A and B, and one for each output. Rank hardly counts, so VeRA "
        "takes a large one.",
        solution="answer = 256 + 4096",
    ),
    Exercise(
        "08-rank",
        hint="A has r rows, B has r columns, and nothing else is stored.",
        checker=equals(
            STORED / RANK,
            {
                STORED / RANK**2: "A and B together grow with r, not with its square.",
                STORED
                / RANK
                / 2: "twice too small: A and B each shrink by 16, and so does their sum.",
                STORED / RANK / 4: "the bytes were bytes already; each number takes 4 of them.",
                STORED: "rank 1 stores one row of A and one column of B for each module.",
            },
        ),
        because="both matrices shrink with r. Remember this number: it is a rival that needs no "
        "new idea.",
        solution="answer = 1_769_472 // 16",
    ),
    Exercise(
        "08-error",
        hint="Add up the squared distances from the mean, divide by n - 1, and take the root: that "
        "is the standard deviation. For the mean of n runs, divide it by the root of n.",
        checker=equals(
            DEVIATION / math.sqrt(len(LOSSES)),
            {
                DEVIATION: "that is the standard deviation of a single run; the mean of three is "
                "surer.",
                DEVIATION / 3: "divide by the root of n, not by n.",
                math.sqrt(2 / 3) * DEVIATION: "that divides by n under the root, not by n - 1, and "
                "it is of a single run.",
                math.sqrt(2 / 3) * DEVIATION / math.sqrt(3): "n - 1 below the root: the mean is "
                "made of the same three runs, so one of them is not free.",
                0.44: "that is the mean itself.",
                0.04: "that is the range.",
            },
        ),
        because="0.02 divided by the root of 3. To halve it, four times as many runs are needed.",
        solution="import statistics\n\nanswer = statistics.stdev([0.42, 0.44, 0.46]) / 3**0.5",
    ),
    Exercise(
        "08-front",
        hint="A method is beaten if another stores no more and has no larger loss, and is better "
        "in one of the two. Keep a name if no other one does that to it.",
        checker=_check_front,
        because="what is left is the front: to store less there, one has to accept a larger loss.",
        solution="""\
def answer(points):
    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    return {
        name
        for name, point in points.items()
        if not any(beats(rival, point) for rival in points.values())
    }""",
    ),
]
