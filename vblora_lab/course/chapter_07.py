"""Exercises of notebook 07: store and ship."""

from __future__ import annotations

from vblora_lab.course.exercise import Exercise, equals

SUB_VECTORS, NUM_VECTORS, LENGTH, TOPK = 1000, 100, 64, 3  # of the adapter in the questions
USERS = 10_000
BANK = NUM_VECTORS * LENGTH * 4
CHOICES = SUB_VECTORS * (TOPK * 1 + (TOPK - 1) * 4)


def _file(weights: int = TOPK - 1, index_bytes: int = 1) -> int:
    return BANK + SUB_VECTORS * (TOPK * index_bytes + weights * 4)


EXERCISES = [
    Exercise(
        "07-index",
        hint="The numbers run from 0 to 299. A byte holds 256 different numbers.",
        checker=equals(
            2,
            {
                1: "one byte counts from 0 to 255, but index 299 must fit.",
                4: "that would do, but two bytes suffice for a bank of up to 32,767 vectors.",
                8: "torch counts with 8 bytes in memory; the file keeps the smallest integer that "
                "fits.",
                600: "that is the whole bank; the question is about one index.",
                9: "that is in bits; round up to whole bytes.",
            },
        ),
        because="one byte reaches to 255, two bytes reach to 32,767 (one bit is the sign).",
        solution="answer = 2",
    ),
    Exercise(
        "07-topk",
        hint="The bank: 100 * 64 numbers of 4 bytes. A sub-vector: 3 indices of 1 byte each, and "
        "weights of 4 bytes. Does each weight have to be stored, if they sum to 1?",
        checker=equals(
            BANK + CHOICES,
            {
                CHOICES: "that is what the sub-vectors take; the bank is in the file too.",
                BANK: "that is the bank alone; the sub-vectors' choices are in the file too.",
                BANK + SUB_VECTORS * NUM_VECTORS * 4: "that is the file with all logits.",
                _file(weights=3): "that stores 3 weights per sub-vector. They sum to 1, so the "
                "last one needn't be stored.",
                _file(weights=0): "the indices are there, the weights aren't.",
                _file(index_bytes=2): "that takes 2 bytes for an index; 1 can count 100 vectors.",
                _file(index_bytes=8): "that takes 8 bytes for an index; 1 can count 100 vectors.",
            },
        ),
        because="25,600 for the bank, and per sub-vector 3 indices of 1 byte and 2 weights of 4.",
        solution="answer = 100 * 64 * 4 + 1000 * (3 * 1 + 2 * 4)",
    ),
    Exercise(
        "07-users",
        hint="What is stored once, and what for each user?",
        checker=equals(
            BANK + USERS * CHOICES,
            {
                USERS * (BANK + CHOICES): "that stores the bank with every user; it is shared.",
                USERS * CHOICES: "nearly: the bank has to be stored too, once.",
                BANK + CHOICES: "that is one user.",
            },
        ),
        because="the bank once, and 11,000 bytes for each of 10,000 users: 110 MB.",
        solution="answer = 100 * 64 * 4 + 10_000 * 1000 * (3 * 1 + 2 * 4)",
    ),
    Exercise(
        "07-half",
        hint="For n users, one bank takes 98,304 + 27,648 n bytes, and a bank each 125,952 n.",
        checker=equals(
            3,
            {
                1: "one user needs one bank either way.",
                2: "for two, 153,600 bytes against 251,904: that is 61 %.",
                4: "for four it is less than half too, but it was so before.",
                2 * 98304 / (98304 - 27648): "that is where the lines cross; users come whole.",
            },
        ),
        because="for three users, 181,248 bytes against 377,856 are 48 %; for two it was 61 %.",
        solution="answer = next(n for n in range(1, 9) if 98304 + 27648 * n < 125952 * n / 2)",
    ),
]
