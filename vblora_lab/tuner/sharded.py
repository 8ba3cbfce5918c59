"""A model whose parameters are cut over processes: `fully_shard` on each layer and on the model.

Three things differ under FSDP2. Every adapted layer holds the bank, and FSDP must take it up with
the model itself, whose group is whole from the first layer to the last: until all adapted layers
are sharded, the bank keeps itself from view (`VectorBanks.named_parameters`). Logits are whole only
while their layer runs, so layers mix for themselves. And what is stored is gathered first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FrameType
from typing import Any, Protocol, cast

import torch.distributed as dist
from torch import Tensor, nn

from vblora_lab.errors import TargetError


def is_distributed() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def asked_by_fsdp(frame: FrameType) -> bool:
    """Whether a function of FSDP runs in this frame."""
    return str(frame.f_globals.get("__name__", "")).startswith("torch.distributed.fsdp")


def is_cut(tensor: object) -> bool:
    """Whether a process holds but a part of a tensor."""
    if not is_distributed():
        return False
    from torch.distributed.tensor import DTensor  # takes a while to import

    return isinstance(tensor, DTensor)


class Banks(Protocol):
    """What is asked of the banks of a model (`banks.VectorBanks`)."""

    in_care_of_fsdp: bool | None


def mixes_by_layer(model: nn.Module, banks: Banks) -> bool:
    """Whether each layer must mix for itself, since parameters of the model are cut.

    Args:
        model: between two passes.
        banks: of its adapters.

    Raises:
        TargetError: FSDP has taken up the model and not the banks, whose gradients stay apart.
    """
    if not is_distributed():
        return False
    if banks.in_care_of_fsdp is False:
        raise TargetError(
            "the model is sharded and its vector bank isn't, so that its gradients would differ "
            "between processes. Call fully_shard on every module that holds adapted layers (each "
            "decoder layer, and an adapted lm_head), and then on the model itself."
        )
    return any(map(is_cut, model.parameters()))


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole. Where they are cut, every process must call this."""
    return {key: cast(Any, t).full_tensor() if is_cut(t) else t for key, t in tensors.items()}
