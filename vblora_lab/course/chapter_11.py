"""Exercises of notebook 11: build it yourself. Their hidden tests begin with `building`."""

from __future__ import annotations

from vblora_lab.course import building, building_models, worked
from vblora_lab.course.exercise import Exercise
from vblora_lab.course.worked import as_answer

TORCH = ("import torch", "from torch import nn")
PIECES = "from vblora_lab.course.worked import"

EXERCISES = [
    Exercise(
        "11-admixture",
        hint="logits.topk(k, dim=-1) gives values and indices, both (..., k). bank[indices] is "
        "(..., k, b). Weigh its rows, and sum over the k.",
        checker=building.check_admixture,
        because="the right numbers and gradients, for one sub-vector as for a whole matrix.",
        solution=as_answer(worked.admixture),
    ),
    Exercise(
        "11-layer",
        hint="h and b are in bank.shape. The sub-vectors of A lie end to end in its rows: "
        "flatten(1). Those of B lie below each other in its columns: "
        "transpose(1, 2).flatten(0, 1).",
        checker=building.check_layer,
        because="base(x) + B A x to the last digit, and a gradient for bank and logits.",
        solution=as_answer(worked.VBLinear, *TORCH, f"{PIECES} admixture"),
    ),
    Exercise(
        "11-bank",
        hint="One nn.Parameter before the loop. torch.empty(h, b).uniform_(-0.02, 0.02) draws it.",
        checker=building.check_shared,
        because="one object in all layers: a step for one of them changes the others.",
        solution=as_answer(worked.share_bank, *TORCH, f"{PIECES} VBLinear"),
    ),
    Exercise(
        "11-injection",
        hint="Freeze first. Gather the names of the nn.Linear modules whose last part "
        '(name.rpartition(".")[2]) is in endings, and only then replace them in their parents.',
        checker=building_models.check_injection,
        because="those layers and no others, on one bank, and nothing else is trained.",
        solution=as_answer(worked.inject, *TORCH, f"{PIECES} share_bank"),
    ),
    Exercise(
        "11-file",
        hint="The modules with logits_A are your layers. Indices go in as torch.uint8; of the k "
        "weights the last is left out, which leaves a view: .contiguous() makes it a tensor of its "
        "own.",
        checker=building_models.check_file,
        because="key for key what PEFT expects, in as few bytes as its format allows.",
        solution=as_answer(worked.topk_tensors, "import torch"),
    ),
]
