"""Exercises of notebook 02: from LoRA to a bank."""

from __future__ import annotations

from typing import Any

from vblora_lab.course import worked
from vblora_lab.course.building import check_layer
from vblora_lab.course.exercise import Exercise, called, check_tensor, equals
from vblora_lab.course.worked import as_answer

R, INS, OUTS, LENGTH = 4, 256, 1024, 64  # of the layer that the questions are about


def _check_columns(answer: Any) -> None:
    import torch

    from vblora_lab.admixture import columns_of_B

    out_tiles, r, length = 3, 2, 4
    sub_vectors = torch.arange(out_tiles * r * length, dtype=torch.float32)
    sub_vectors = sub_vectors.view(out_tiles, r, length)
    expected = columns_of_B(sub_vectors)
    untransposed = sub_vectors.reshape(out_tiles * length, r)
    mistakes = {
        "the shape is right, but the sub-vectors are torn apart: reshape alone keeps the order in "
        "memory. Swap the last two axes first, then the pieces of a column lie below each other.": (
            untransposed
        ),
        "this is B transposed: its sub-vectors lie in rows. Those of B are columns.": expected.T,
    }
    check_tensor(called(answer, sub_vectors), expected, mistakes)


EXERCISES = [
    Exercise(
        "02-lora",
        hint="A has one row per rank, as long as the input. B has one column per rank, as long as "
        "the output. Count the numbers in both.",
        checker=equals(
            R * (INS + OUTS),
            {
                INS * OUTS: "that is the whole weight matrix W, which LoRA leaves frozen.",
                R * INS * OUTS: "A and B are multiplied with each other, but their sizes add up.",
                R * INS: "that is A alone; B is trained too.",
                R * OUTS: "that is B alone; A is trained too.",
                INS + OUTS: "that is one rank; there are r = 4 of them.",
            },
        ),
        because="r * (in + out) = 4 * (256 + 1024). The matrix itself has in * out numbers, 51 "
        "times as many.",
        solution="answer = 4 * (256 + 1024)",
    ),
    Exercise(
        "02-tiles",
        hint="How many pieces of 64 does one row of A give, and one column of B? How many rows and "
        "columns are there?",
        checker=equals(
            R * (INS + OUTS) // LENGTH,
            {
                R * INS // LENGTH: "that is A alone; the columns of B are cut too.",
                R * OUTS // LENGTH: "that is B alone; the rows of A are cut too.",
                (INS + OUTS) // LENGTH: "that is one row of A and one column of B; there are "
                "r = 4 of each.",
                R * (INS + OUTS): "that is how many numbers there are; 64 of them make a "
                "sub-vector.",
                INS * OUTS // LENGTH: "A and B are cut, not W.",
            },
        ),
        because="r * in / 64 = 16 pieces of A and r * out / 64 = 64 pieces of B. Both are cut to "
        "one length, so one bank can serve both.",
        solution="answer = 4 * 256 // 64 + 4 * 1024 // 64",
    ),
    Exercise(
        "02-columns",
        hint="Column j of B is sub_vectors[0, j], then sub_vectors[1, j] below it, and so on. So "
        "the axis of the ranks has to come last before tiles and length are joined.",
        checker=_check_columns,
        because="the pieces of a column lie below each other. This is what the library does too.",
        solution="def answer(sub_vectors):\n    return sub_vectors.transpose(1, 2).flatten(0, 1)",
    ),
    Exercise(
        "02-layer",
        hint="h and b are in bank.shape. A is admixture(...).flatten(1), of shape (r, in). B's "
        "sub-vectors go through the answer of 02-columns. Then x @ A.T @ B.T.",
        checker=check_layer,
        because="base(x) + B A x, with gradients for the logits and for the bank that is shared.",
        solution=as_answer(
            worked.VBLinear,
            "import torch",
            "from torch import nn",
            "from vblora_lab.course.worked import admixture",
        ),
    ),
    Exercise(
        "02-bank",
        hint="What in the shape of the bank depends on the layers?",
        checker=equals(
            64 * 64,
            {
                3 * 64 * 64: "a bank for each kind of layer? There is one for all.",
                36 * 64 * 64: "a bank for each layer? There is one for all of them.",
            },
        ),
        because="64 * 64, as before. More layers bring more logits, but they share the same bank.",
        solution="answer = 64 * 64",
    ),
]
