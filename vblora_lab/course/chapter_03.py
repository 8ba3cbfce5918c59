"""Exercises of notebook 03: the top-k admixture."""

from __future__ import annotations

import math
from typing import Any

from vblora_lab.course.exercise import Exercise, Wrong, called, check_tensor, equals


def _check_entropy(answer: Any) -> None:
    import torch

    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.5, 0.3, 0.2, 0.0]])
    expected = torch.special.entr(weights).sum(-1)
    mistakes = {
        "the sign is wrong: logarithms of numbers below 1 are negative, an entropy is not.": (
            -expected
        ),
        "this is in bits (log2); use the natural logarithm, for nats.": expected / math.log(2),
        "this adds up all sub-vectors; give one entropy for each, so sum over the last axis.": (
            expected.sum()
        ),
        "this is the mean over the k weights; an entropy is their sum.": expected / 4,
    }
    result = called(answer, weights)
    # Only the row with a weight of 0 is NaN: say what is special about it.
    if isinstance(result, torch.Tensor) and result.shape == expected.shape:
        nan = torch.isnan(result)
        if nan.any() and not nan[:2].any():
            mistakes = {
                "a weight of exactly 0 gives NaN, since 0 * log(0) is 0 * -inf. In an entropy, it "
                "counts as 0: torch.special.entr or torch.xlogy knows that.": result.nan_to_num()
            }
            result = result.nan_to_num()
    check_tensor(result, expected, mistakes)
    more = weights.view(1, 3, 4)
    try:
        check_tensor(called(answer, more), expected.view(1, 3))
    except Wrong as wrong:
        raise Wrong(f"right for the shape (3, 4), but for (1, 3, 4): {wrong}") from wrong


EXERCISES = [
    Exercise(
        "03-reach",
        hint="Each sub-vector looks at k bank vectors. What would change in u if a logit that "
        "isn't among them grew a little?",
        checker=equals(
            8 * 3,
            {
                3: "that is one sub-vector; the matrix has 8.",
                8: "that is one logit per sub-vector; k is 3.",
                720: "that would be so if all were mixed; top-k leaves most of them out.",
                90: "that is how many logits one sub-vector has.",
                8 * 2: "two of three? All k chosen logits get a gradient; that they add up to zero "
                "doesn't make one of them zero.",
            },
        ),
        because="8 sub-vectors times k = 3. The other 696 logits could change a little, and the "
        "output wouldn't: their gradient is exactly zero.",
        solution="answer = 8 * 3",
    ),
    Exercise(
        "03-balance",
        hint="Add the same number to both logits. What does softmax do? So what must the two "
        "gradients add up to?",
        checker=equals(
            -0.3,
            {
                0.3: "if both gradients were positive, adding a constant to both logits would "
                "change the loss; but softmax doesn't see constants.",
                0.7: "the weights sum to 1, the gradients of the logits don't.",
                -0.7: "the weights sum to 1. The gradients have another sum, and it isn't -0.4 "
                "either: what if the same number were added to both logits?",
                0.0: "then adding a constant to both logits would change the loss; but softmax "
                "doesn't see constants.",
            },
        ),
        because="softmax doesn't see a constant that is added to all logits, so the gradients of a "
        "sub-vector's logits sum to zero. With k = 2, one rises by what the other falls.",
        solution="answer = -0.3",
    ),
    Exercise(
        "03-zero",
        hint="The gradient of B has A in it as a factor, and that of A has B. What are they at the "
        "start? Then use the same thought for bank and logits.",
        checker=equals(
            0,
            {
                32 * 32: "that is all of them. For a number to change, its gradient must be other "
                "than zero at some step.",
                2 * 32: "two vectors? Then their gradient would have to be other than zero at "
                "some step.",
            },
        ),
        because="A and B are zero, the gradient of each has the other as a factor, so bank and "
        "logits get no gradient: neither at the first step nor at any later one.",
        solution="answer = 0",
    ),
    Exercise(
        "03-entropy",
        hint="-(w * log w), summed over the last axis. Try it on a weight of exactly 0.",
        checker=_check_entropy,
        because="0 for one vector alone, log k for equal shares.",
        solution="import torch\n\n\ndef answer(weights):\n"
        "    return torch.special.entr(weights).sum(dim=-1)",
    ),
]
