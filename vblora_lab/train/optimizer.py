"""The optimizer of the VB-LoRA paper: the bank and the logits learn at their own rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vblora_lab.errors import ConfigError

WARM_UP = 0.06  # share of the steps in which the rates rise; then they fall linearly to 0


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates by kind of parameter.

    The defaults for bank and logits are those of the VB-LoRA paper (arXiv 2405.15179, appendix),
    whose runs are long; for what suits a number of steps see `suited_rates`.
    ``other`` is for whatever else is trained: heads, biases, or the parameters of another method.
    """

    bank: float = 1e-3
    logits: float = 1e-2
    other: float = 5e-4

    def __post_init__(self) -> None:
        for field in fields(self):
            rate = getattr(self, field.name)
            if not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 0:
                raise ConfigError(
                    f"learning rate {field.name}={rate!r} must be a number of 0 or more; "
                    f"the default is {field.default}"
                )


SHORT_RUN = 1_000  # steps
SHORT_RUN_RATES = LearningRates(bank=1e-2, logits=1e-1)
"""Ten times the paper's, for runs of hundreds of steps.

`benchmarks/pareto.py` tried rates of the bank on a ladder (1, 2, 5, 10), and ten times as high ones
of the logits, in 500 steps of 16 on SmolLM2-135M and 60 steps of 8 on mini-OPT: the best were 1e-2
and 2e-2, and up to 5e-2 for banks of a few vectors. Logits at 3 to 100 times the bank's rate did
no better or worse."""


def suited_rates(steps: int) -> LearningRates:
    """What training begins with if nobody says: the paper's rates, or for short runs higher ones.

    Runs of up to `SHORT_RUN` steps get `SHORT_RUN_RATES`, as the paper's leave them unfinished: at
    500 steps they cost 0.16 nats per token (SmolLM2-135M, cleaned E2E).
    """
    return SHORT_RUN_RATES if steps <= SHORT_RUN else LearningRates()


def make_optimizer(model: nn.Module, rates: LearningRates) -> torch.optim.AdamW:
    """AdamW without weight decay, one named group each for bank, logits and other parameters.

    Only parameters that require gradients are in it, and only groups that have any.
    """
    groups: dict[str, list[nn.Parameter]] = {"bank": [], "logits": [], "other": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_kind(name)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "lr": getattr(rates, kind), "name": kind}
            for kind, params in groups.items()
            if params
        ],
        weight_decay=0.0,
    )


def _kind(name: str) -> str:
    if "vblora_vector_bank" in name:
        return "bank"
    return "logits" if "vblora_logits" in name else "other"


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each group now, by the group's name, or its number if it has none."""
    groups = enumerate(optimizer.param_groups)
    return {group.get("name", str(i)): float(group["lr"]) for i, group in groups}


def change_peak_rates(
    optimizer: torch.optim.Optimizer, schedule: LambdaLR, rates: LearningRates
) -> None:
    """Let groups made by `make_optimizer` follow the rest of the schedule from other peak rates."""
    for i, group in enumerate(optimizer.param_groups):
        peak = getattr(rates, group["name"])
        schedule.base_lrs[i] = group["initial_lr"] = peak
        group["lr"] = peak * schedule.lr_lambdas[i](schedule.last_epoch)
