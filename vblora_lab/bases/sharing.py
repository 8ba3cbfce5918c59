"""Several models over one set of weights."""

from __future__ import annotations

import copy

from torch import nn


def share_weights(model: nn.Module) -> nn.Module:
    """A second model over the same weight memory, so that adapting one leaves the other as it is.

    Modules are copied, and each parameter becomes a new `nn.Parameter` on the old storage; buffers
    are copied. The biases, which a config can ask to train, are copied too. Only writing into a
    shared weight in place would be seen by both. Weights that bitsandbytes stores in 4 bits keep
    their scales; those in 8 bits are copied too, since a layer takes them apart as it runs.
    """
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "SCB"):
            continue
        if hasattr(parameter, "quant_state"):
            memo[id(parameter)] = copy.copy(parameter)
            continue
        data = parameter.data.clone() if name.endswith("bias") else parameter.data
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)
