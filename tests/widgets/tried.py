"""Trials that nobody trained, for what shows them."""

import math

from peft import LoraConfig

from vblora_lab import LearningRates, Tuned, VBLoRAConfig
from vblora_lab.train.tune_result import Tried

RATES = LearningRates(bank=1e-2, logits=1e-1, other=1e-3)


def tried(number: int, bytes: int, loss: float, *, method="vblora", state="completed") -> Tried:
    """A trial; one that was cut short has its loss as the last one that is known."""
    config = VBLoRAConfig(r=2, num_vectors=8, vector_length=4, target_modules=["q_proj"])
    if method == "lora":
        config = LoraConfig(r=2, target_modules=["q_proj"])
    known = loss if state == "completed" else math.nan
    return Tried(
        f"trial-{number:03}", method, "query and value", config, RATES, bytes, known, loss, state
    )


def tuned(*trials: Tried, budget: int = 50_000) -> Tuned:
    names = {"base": "mini-opt", "task": "restaurants"}
    numbers = {"steps": 3, "batch_size": 2, "seed": 0, "eval_examples": 2}
    return Tuned(trials, budget, {**names, **numbers})


SOME = (
    tried(0, 20_000, 1.2),
    tried(1, 10_000, 1.5, method="lora"),
    tried(2, 30_000, 1.4),
    tried(3, 40_000, 1.0),
    tried(4, 25_000, 9.0, state="cut short"),
    tried(5, 15_000, math.nan, state="failed: the loss is nan"),
)
