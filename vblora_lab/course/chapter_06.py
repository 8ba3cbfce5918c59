"""Exercises of notebook 06: what the bank learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vblora_lab.course.exercise import Exercise, Wrong, called, equals, number


def _check_churn(answer: Any) -> None:
    first = np.array([[3, 1], [0, 2], [4, 5], [6, 7], [8, 9], [1, 2]])
    last = np.array([[1, 3], [0, 5], [4, 5], [7, 8], [8, 9], [1, 2]])
    value = number(called(answer, first.copy(), last.copy()))
    mistakes = {
        3 / 6: "the first sub-vector chose 3 and 1, then 1 and 3. That is the same set in another "
        "order: sort each row before you compare.",
        4 / 6: "this is the share that stayed; give the share that changed.",
        3 / 12: "this counts single places; a sub-vector counts once, however many of its vectors "
        "are new.",
        5 / 12: "this counts single places; a sub-vector counts once, and the order within its "
        "set doesn't matter.",
        2.0: "this is how many; give their share of all sub-vectors.",
        3.0: "this is how many, and it counts 3 and 1 as a different set from 1 and 3.",
    }
    for wrong, text in mistakes.items():
        if math.isclose(value, wrong):
            raise Wrong(text)
    if not math.isclose(value, 2 / 6):
        raise Wrong(f"of 6 sub-vectors 2 have another set, a share of 0.333; this gives {value:g}.")
    # Other sets with the same sum, smallest or largest number, and more places than two.
    first = np.array([[0, 4, 5], [0, 4, 5], [1, 2, 6], [7, 8, 9]])
    last = np.array([[2, 3, 4], [0, 3, 5], [6, 2, 1], [7, 6, 9]])
    value = number(called(answer, first.copy(), last.copy()))
    if not math.isclose(value, 3 / 4):
        raise Wrong(
            f"from {first.tolist()} to {last.tolist()} 3 of 4 sets change, a share of 0.75; this "
            f"gives {value:g}. Are whole sets compared?"
        )


def _check_chance(answer: Any) -> None:
    for vectors, k, sub_vectors in ((20, 2, 30), (50, 3, 40)):  # so that none can be built in
        _check_chance_for(number(called(answer, vectors, k, sub_vectors)), vectors, k, sub_vectors)


def _check_chance_for(value: float, vectors: int, k: int, sub_vectors: int) -> None:
    share = (1 - k / vectors) ** sub_vectors
    mistakes = {
        share: "this is the chance that one vector is unused; how many of the bank does that make?",
        vectors * (1 - share): "this is how many are used.",
        vectors * (1 - 1 / vectors) ** sub_vectors: "a sub-vector chooses k vectors, not one.",
        # Single draws, so that one sub-vector could take the same vector twice.
        vectors * (1 - 1 / vectors) ** (k * sub_vectors): "nearly: the k vectors of one sub-vector "
        "differ, so they aren't k lone draws.",
        0.0: "there are more choices than vectors, but chance doesn't deal them out evenly.",
    }
    for wrong, text in mistakes.items():
        if math.isclose(value, wrong, abs_tol=1e-9):
            raise Wrong(text)
    if not math.isclose(value, vectors * share):
        raise Wrong(
            f"for {vectors} vectors, k={k} and {sub_vectors} sub-vectors this gives {value:.4g}, "
            f"and it should be {vectors * share:.4g}."
        )


EXERCISES = [
    Exercise(
        "06-churn",
        hint="np.sort(indices, axis=1) puts the numbers of each row in order. Then a row differs "
        "if any of its places does.",
        checker=_check_churn,
        because="two sub-vectors of four have another set; order within a set is only which weight "
        "is larger.",
        solution="import numpy as np\n\n\ndef answer(first, last):\n"
        "    differs = np.sort(first, axis=1) != np.sort(last, axis=1)\n"
        "    return differs.any(axis=1).mean()",
    ),
    Exercise(
        "06-chance",
        hint="One sub-vector misses a given vector with chance 1 - k / h. All N must miss it. That "
        "is the chance for one vector; the bank has h.",
        checker=_check_chance,
        because="h (1 - k/h)^N: each vector is missed by all N sub-vectors with that chance.",
        solution="def answer(h, k, N):\n    return h * (1 - k / h) ** N",
    ),
    Exercise(
        "06-sharing",
        hint="Write down what each layer takes, vector by vector. How much of it do both take?",
        checker=equals(
            0.5,
            {
                1 / 3: "that is one vector in three, as if all counted alike; here shares count.",
                0.75: "layer 1 takes 0.75 of it, but layer 0 only 0.5: what both take is the "
                "smaller of the two.",
                0.375: "that is 0.5 times 0.75; what both take is the smaller of the two.",
                0.625: "that is the mean of 0.5 and 0.75; what both take is the smaller.",
                1.25: "that adds 0.5 and 0.75; what both take is the smaller of the two.",
                1.0: "that is the number of shared vectors, or all that a layer takes.",
                0.0: "they have one vector in common, number 2.",
                50: "as a number from 0 to 1, not in per cent.",
            },
        ),
        because="only vector 2 is in both: min(0.5, 0.75). In a formula, the sum over the bank of "
        "min(p_a, p_b).",
        solution="answer = min(0.5, 0.0) + min(0.5, 0.75) + min(0.0, 0.25)",
    ),
    Exercise(
        "06-off",
        hint="Its logits aren't touched. Only vector 8 has become zeros.",
        checker=equals(
            0.2,
            {
                1.0: "so it would be if vector 8 couldn't be chosen any more; here it still is, "
                "and is made of zeros.",
                0.8: "that is the weight of the vector that was switched off.",
                0.0: "vector 8 is switched off, not vector 3.",
                0.5: "the weights come from the logits, and those weren't touched.",
            },
        ),
        because="the weights stay, so the sub-vector loses what it took from vector 8. With "
        "next_best=True the next best logit would take its place, and weights be shared out anew.",
        solution="answer = 0.2",
    ),
]
