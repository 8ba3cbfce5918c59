"""What no training step can do without: the arithmetic of products, and reading weights."""

from __future__ import annotations

from typing import Any

import torch
from speed_rows import Row
from torch import nn


def floor(base: nn.Module, row: Row) -> dict[str, float]:
    """Floating-point operations and bytes of a step with gradient checkpointing, layer by layer.

    A frozen weight is multiplied forward, again when its layer is, and for the gradient of its
    input. A and B once more, for their own gradients. What a layer does last isn't needed a second
    time, since no gradient asks for its result; the head is no part of a layer. Attention is
    causal, half of two products forward and again, and of four backward. Each weight is read as
    often as it is multiplied, in the bits that it is stored in. Activations are not counted: how
    often they are read and written is a matter of what is fused. Nor are admixture and optimizer.

    Args:
        base: a Llama on any device.
        row: batch, length, rank and targets.
    """
    tokens = row.batch * row.length
    linear = {name: m for name, m in base.named_modules() if isinstance(m, nn.Linear)}
    operations = dict.fromkeys(("base", "attention", "adapter"), 0)
    read = 0
    for name, layer in linear.items():
        again = ".layers." in name and not name.endswith(".mlp.down_proj")  # the last of its layer
        times = 2 + again
        operations["base"] += 2 * tokens * times * layer.in_features * layer.out_features
        read += times * stored_bytes(layer.weight)
        if name.endswith(tuple(row.where()["target_modules"])):
            a, b = row.r * layer.in_features, row.r * layer.out_features
            operations["adapter"] += 2 * tokens * (4 * a + (3 + again) * b)
    config: Any = base.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    products = 8 * config.num_hidden_layers
    operations["attention"] = products * tokens * row.length * width  # 2 operations, half of them
    sizes = {f"teraflops_{what}": n / 1e12 for what, n in operations.items()}
    sizes["gigabytes_weights"] = read / 1e9
    return {name: float(f"{size:.6g}") for name, size in sizes.items()}


def stored_bytes(weight: torch.Tensor) -> int:
    """Of a weight as it is stored; with the scales, if bitsandbytes packed it."""
    state = getattr(weight, "quant_state", None)
    scales = 0
    while state is not None:  # the scales of scales are nested
        scales += state.absmax.nbytes
        state = state.state2 if state.nested else None
    return weight.nbytes + scales
