"""An adapter of which a part is not trained: to see what each part does, or to train less."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from vblora_lab.errors import ConfigError, TargetError, did_you_mean
from vblora_lab.tuner.adapted import adapted_layers

Part = Literal["choices", "weights", "bank"]

NEVER = -1e4
"""The logit of a bank vector that can't be chosen: float16 holds it, and its softmax is 0."""


@torch.no_grad()
def freeze(model: nn.Module, *parts: Part, adapter_name: str = "default") -> None:
    """Keep parts of an adapter as they are now, whatever is trained from here on.

    "choices": each sub-vector keeps the topk bank vectors that it has chosen. How much it takes of
    each is still trained. The logits of all other vectors become -10,000, in the file of all
    logits too; in the top-k format a file is as any other.
    "weights": how much each sub-vector takes is kept too, so that no logit is trained.
    "bank": the bank's vectors aren't trained. It is that of all adapters that share it.

    Call it before the optimizer is made, as it sets ``requires_grad`` (`set_adapter` sets it anew);
    for "choices" alone any time will do.

    Args:
        model: a PeftModel or tuner of this package.
        parts: what to keep; none for nothing.
        adapter_name: the adapter.

    Raises:
        ConfigError: no part has such a name.
        TargetError: the model has no such adapter.
    """
    for part in parts:
        if part not in get_args(Part):
            raise ConfigError(
                f"part={part!r}: must be one of {', '.join(get_args(Part))}."
                f"{did_you_mean(part, get_args(Part))}"
            )
    layers = adapted_layers(model, adapter_name)
    if not layers:
        raise TargetError(f"adapter_name={adapter_name!r}: the model has no adapter of that name.")
    for layer in layers.values():
        if "bank" in parts:
            layer.bank(adapter_name).requires_grad_(False)
        for logits in layer.logits(adapter_name):
            if "choices" in parts or "weights" in parts:
                values, indices = logits.topk(layer.topk[adapter_name], dim=-1)
                logits.copy_(torch.full_like(logits, NEVER).scatter_(-1, indices, values))
            if "weights" in parts:
                logits.requires_grad_(False)
