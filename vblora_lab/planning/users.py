"""What N users of one base model cost to store, each with an adapter of their own, by method.

Numbers are stored in float32, as PEFT does. Sizes are those of `plan`; VeRA's, which `plan` doesn't
know, are counted from the plan's modules.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from vblora_lab.planning.plan import plan
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.sizes import FLOAT32_BYTES

VERA_RANK = 256  # PEFT's default; VeRA stores that many numbers more for each module


@dataclass(frozen=True)
class Cost:
    """Bytes that a method stores.

    Attributes:
        method: its name.
        once: whatever the number of users.
        each: of each user.
    """

    method: str
    once: int
    each: int


def costs_of_users(model: nn.Module, config: VBLoRAConfig) -> tuple[Cost, ...]:
    """What each method stores for users of a model, on the modules that a config names.

    Args:
        model: the base model; its parameters may be on the meta device. Never changed.
        config: of VB-LoRA in the top-k format, without biases and modules to save; LoRA gets its
            rank.
    """
    planned = plan(model, config)
    of_rank_1 = plan(model, dataclasses.replace(config, r=1))
    bank = planned.bank_parameters * FLOAT32_BYTES
    vera = FLOAT32_BYTES * sum(VERA_RANK + target.out_features for target in planned.targets)
    return (
        Cost("LoRA", 0, planned.lora_bytes),
        Cost("LoRA of rank 1", 0, of_rank_1.lora_bytes),
        Cost("VeRA", 0, vera),
        Cost("VB-LoRA, a bank each", 0, planned.topk_bytes),
        Cost("VB-LoRA, one bank for all", bank, planned.topk_bytes - bank),
    )
