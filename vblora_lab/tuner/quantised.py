"""Quantised base weights: read as numbers, and given back bit for bit after a merge.

PEFT's quantisation back ends do the arithmetic, merged = quantise(dequantise(W) + B A), for the
weights that bitsandbytes stores in 4 or 8 bits. This module adds what they leave open: layers
without a back end, weights that bitsandbytes has packed anew, and the way back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.quantization_utils import (
    Bnb4bitBackend,
    Bnb8bitBackend,
    QuantizationBackend,
    resolve_quantization_backend,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from vblora_lab.tuner.sharded import is_cut


def backend_of(layer: nn.Module) -> QuantizationBackend | None:
    """PEFT's back end for a linear layer; None for a plain one."""
    if type(layer) in (nn.Linear, Conv1D):  # the search would import every quantiser there is
        return None
    return resolve_quantization_backend(layer)


def why_not_mergeable(layer: nn.Module, backend: QuantizationBackend | None) -> str | None:
    """Why an update can't be added to the weight of a layer; None if it can."""
    weight: Any = layer.weight
    kind = str(weight.dtype)
    if is_cut(weight):
        return "its weight is cut over processes (FSDP). Save the adapter, and merge it in one."
    if isinstance(backend, Bnb4bitBackend | Bnb8bitBackend):
        four_bits = isinstance(backend, Bnb4bitBackend)
        done = weight.quant_state is not None if four_bits else weight.dtype == torch.int8
        if done:
            return None
        return (
            f"bitsandbytes hasn't quantised its weight ({kind}) yet. It does so when the base "
            'model is moved to its device, if only with model.to("cpu").'
        )
    if backend is not None:
        kind = backend.backend_name
    elif type(weight).__module__.partition(".")[0] == "torchao":
        # It keeps nn.Linear as it is, and hides the quantised weight behind the dtype it had.
        kind = type(weight).__name__
    elif weight.is_floating_point() and weight.element_size() > 1:
        return None
    return (
        f"its weight is quantised ({kind}), and not in a way that can be read and written back. "
        "Load the base model unquantised, or in 4 or 8 bits by bitsandbytes, to merge."
    )


def dequantised(layer: nn.Module, backend: QuantizationBackend) -> Tensor:
    """The weight (out, in) as floating point numbers; the layer isn't touched."""
    if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
        # On some CPUs a 4-bit layer packs its weight anew in its first pass in eval mode, and
        # dequantising doesn't know that order. bitsandbytes undoes it to make a state dict.
        layer = copy.deepcopy(layer)
        layer.state_dict()
    return backend.get_base_weight(layer)


def dtype_to_write(weight: Tensor, backend: QuantizationBackend | None) -> torch.dtype:
    """The dtype in which a back end takes a weight: the one for 8 bits takes float16 alone."""
    return torch.float16 if isinstance(backend, Bnb8bitBackend) else weight.dtype


@dataclass(frozen=True)
class SetAside:
    """A quantised weight with its scales, kept apart while a back end writes another one."""

    weight: Any  # Params4bit or Int8Params

    @classmethod
    def of(cls, layer: Any) -> SetAside:
        """Take the weight out of a layer; what it holds now can be written over."""
        weight = layer.weight
        if hasattr(layer, "state"):  # 8 bits: the first pass moved the scales to the state
            if layer.state.SCB is not None:
                weight.CB, weight.SCB = weight.data, layer.state.SCB
        else:  # 4 bits: the back end changes attributes of the weight that it replaces
            layer.weight = copy.copy(weight)
        return cls(weight)

    def put_back(self, layer: Any) -> None:
        """Give the layer its weight back, on the device where the layer is now."""
        moved = self.weight.device != layer.weight.device
        layer.weight = self.weight.to(layer.weight.device) if moved else self.weight
        if hasattr(layer, "state"):
            layer.state.reset_grads()  # the next pass reads the weight's scales again
        else:
            layer.quant_state = layer.weight.quant_state
