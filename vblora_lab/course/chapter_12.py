"""Exercises of notebook 12: a text classifier."""

from __future__ import annotations

from vblora_lab.course.exercise import Exercise, equals

WIDTH, LABELS = 384, 3  # of MiniLM, and of the question
HEAD = WIDTH * LABELS + LABELS
ROBERTA = 768
DENSE, OUT = ROBERTA * ROBERTA + ROBERTA, ROBERTA * LABELS + LABELS
YES, NO, NOT_SAID = 150, 90, 260

EXERCISES = [
    Exercise(
        "12-most-frequent",
        hint="What share of the texts has the label that is most frequent?",
        checker=equals(
            NOT_SAID / (YES + NO + NOT_SAID),
            {
                1 / LABELS: "that is what guessing gives, each label as often as any other.",
                NOT_SAID: "a share of all texts, between 0 and 1.",
            },
        ),
        because="who says 'not said' of every text is right in 52% of the cases, and has read none "
        "of them. What a classifier is worth begins there.",
        solution="answer = 260 / (150 + 90 + 260)",
    ),
    Exercise(
        "12-head",
        hint="One weight for each label and each number that comes in, and one bias for each "
        "label.",
        checker=equals(
            HEAD,
            {
                WIDTH * LABELS: "each label has a bias too.",
                WIDTH + LABELS: "every label has its own weight for every number that comes in.",
                4 * HEAD: "that is bytes; the question is how many numbers.",
            },
        ),
        because="384 x 3 weights and 3 biases: 4,620 bytes in the file.",
        solution="answer = 384 * 3 + 3",
    ),
    Exercise(
        "12-roberta",
        hint="Two linear layers, one of 768 x 768 and one of 768 x 3, each with its biases; each "
        "number takes 4 bytes.",
        checker=equals(
            4 * (DENSE + OUT),
            {
                DENSE + OUT: "that is how many numbers there are; each takes 4 bytes.",
                4 * OUT: "that is the second layer alone. The first one is new as well.",
                4 * DENSE: "that is the first layer alone.",
                4 * (DENSE + OUT - ROBERTA - LABELS): "both layers have biases.",
            },
        ),
        because="2.4 MB of head beside an adapter of some ten kB: for this model, the head is the "
        "file.",
        solution="answer = 4 * (768 * 768 + 768 + 768 * 3 + 3)",
    ),
]
