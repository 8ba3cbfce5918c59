"""Exercises of notebook 01: VB-LoRA, live."""

from __future__ import annotations

import math

from vblora_lab.course.exercise import Exercise, equals

PROBABILITY = 0.25
ROWS, COLUMNS, TOPK = 96, 64, 3
BANK, SUB_VECTORS, EACH = 24_576, 192, 6  # bytes, how many, bytes

EXERCISES = [
    Exercise(
        "01-surprise",
        hint="Python: math.log is the natural logarithm, ln. Mind the sign.",
        checker=equals(
            -math.log(PROBABILITY),
            {
                math.log(PROBABILITY): "the minus is missing: a loss of probabilities is positive.",
                PROBABILITY: "that is p itself; the loss is the negative of its logarithm.",
                1 - PROBABILITY: "that is the probability of all other tokens.",
                2: "that is in bits, with the logarithm to base 2; ln has base e.",
                -math.log10(PROBABILITY): "that is the logarithm to base 10; ln has base e.",
                math.log(2): "that is the loss where p is a half.",
            },
        ),
        because="ln 4, about 1.39. A token that was certain has loss 0, and each halving of p adds "
        "0.69.",
        solution="import math\n\nanswer = -math.log(0.25)",
    ),
    Exercise(
        "01-cells",
        hint="What does one row show, and how many coloured cells are in it?",
        checker=equals(
            ROWS * TOPK,
            {
                ROWS * COLUMNS: "that is all cells; a row has topk coloured ones.",
                COLUMNS * TOPK: "topk is per row, and the rows are the sub-vectors.",
                ROWS: "that would be one in each row.",
                ROWS * (TOPK - 1): "topk - 1 is how many weights are stored; topk cells have one.",
            },
        ),
        because="each sub-vector mixes topk bank vectors, whatever the size of the bank.",
        solution="answer = 96 * 3",
    ),
    Exercise(
        "01-layers",
        hint="What does the number of layers change: the bank, the sub-vectors, or both?",
        checker=equals(
            BANK + 2 * SUB_VECTORS * EACH,
            {
                BANK + SUB_VECTORS * EACH: "that is for as many layers as before.",
                2 * (BANK + SUB_VECTORS * EACH): "there is one bank for all layers.",
                2 * SUB_VECTORS * EACH: "the bank is stored too.",
                2 * BANK + SUB_VECTORS * EACH: "the other way round: the sub-vectors are doubled.",
            },
        ),
        because="the bank is stored once. Twice the layers cost 4% more.",
        solution="answer = 24_576 + 2 * 192 * 6",
    ),
]
