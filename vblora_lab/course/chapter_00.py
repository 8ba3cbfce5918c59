"""Exercises of notebook 00: start here."""

from __future__ import annotations

from vblora_lab.course.exercise import Exercise, equals

LAYERS, MODULES, RANK, SIZE = 6, 2, 2, 256  # of the adapter in the notebook
NUM_VECTORS, LENGTH = 64, 64
TILES = SIZE // LENGTH
SUB_VECTORS = LAYERS * MODULES * RANK * (TILES + TILES)
MORE = NUM_VECTORS * LENGTH * 4

EXERCISES = [
    Exercise(
        "00-weights",
        hint="The weights come from a softmax. What do they sum to?",
        checker=equals(
            0.3,
            {
                0.7: "equal shares would be 0.5 and 0.5; the weights of a row sum to 1.",
                1.0: "that is what both together make.",
                1.3: "a weight is at most 1: it is a share.",
                -0.7: "a weight is never negative: it is a share.",
                30: "as a number from 0 to 1, not in per cent.",
            },
        ),
        because="the weights of a sub-vector come from a softmax: they are shares, of sum 1.",
        solution="answer = 1 - 0.7",
    ),
    Exercise(
        "00-rows",
        hint="A row of A has 256 numbers, so it is cut into 256 / 64 pieces. A has r = 2 rows, B "
        "has 2 columns. Then count the modules.",
        checker=equals(
            SUB_VECTORS,
            {
                SUB_VECTORS // 2: "that is A alone, or B alone, or one module in each layer; "
                "there are two, and each has both.",
                SUB_VECTORS // (2 * RANK): "that is one row of A for each module. A has r = 2 "
                "rows, and there is B too.",
                2 * RANK * TILES: "that is one module; 6 layers have two each.",
                MODULES * 2 * RANK * TILES: "that is one layer; there are 6.",
                SUB_VECTORS * LENGTH: "that counts numbers; a sub-vector has 64 of them.",
                NUM_VECTORS: "that is the columns of the map, one for each bank vector.",
            },
        ),
        because="12 modules, each with 2 rows of A and 2 columns of B, each cut into 4 pieces.",
        solution="answer = 12 * (2 + 2) * (256 // 64)",
    ),
    Exercise(
        "00-bank",
        hint="Of what is in the small file (bank, indices, weights), what grows with the bank? A "
        "number of the bank takes 4 bytes, and an index up to 127 takes 1.",
        checker=equals(
            MORE,
            {
                MORE // 4: "that is how many numbers it is; each takes 4 bytes.",
                2 * MORE: "that is how large the bank is then; the question is by how much the "
                "file grows.",
                SUB_VECTORS * NUM_VECTORS * 4: "those are the logits. They are trained, but the "
                "small file keeps only what was chosen.",
                MORE + SUB_VECTORS * NUM_VECTORS * 4: "the logits aren't in the small file.",
                0: "the choices take the same room as before, but the bank is in the file too.",
            },
        ),
        because="64 more vectors of 64 numbers of 4 bytes. Each sub-vector still stores two "
        "indices, of one byte each, and one weight.",
        solution="answer = 64 * 64 * 4",
    ),
]
