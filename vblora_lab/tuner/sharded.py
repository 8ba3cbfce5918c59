"""A model whose parameters are cut over processes, by FSDP2's `fully_shard` or DeepSpeed's ZeRO-3.

Three things differ. Logits are whole only while their layer runs: under FSDP2, with all others of
its unit, which are mixed together (see `speed.by_unit`); under ZeRO-3, each layer mixes for itself.
What is read or stored is gathered first (`whole`). And under FSDP2, every adapted layer holds the
bank, which FSDP must take up with the model itself, whose group is whole from the first layer to
the last: until all adapted layers are sharded, the bank keeps itself from view
(`VectorBanks.named_parameters`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vblora_lab.errors import TargetError
from vblora_lab.speed.pool import MatrixPool


def is_distributed() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def asked_by_fsdp(frame: FrameType) -> bool:
    """Whether a function of FSDP runs in this frame."""
    return str(frame.f_globals.get("__name__", "")).startswith("torch.distributed.fsdp")


def is_cut(tensor: object) -> bool:
    """Whether a process holds but a part of a tensor."""
    return _is_fsdp_s(tensor) or _is_zero_s(tensor)


def _is_fsdp_s(tensor: object) -> bool:
    if not is_distributed():
        return False
    from torch.distributed.tensor import DTensor  # takes a while to import

    return isinstance(tensor, DTensor)


def _is_zero_s(tensor: object) -> bool:
    return hasattr(tensor, "ds_tensor")  # DeepSpeed gives a parameter its attributes by hand


def is_cut_over_processes(model: nn.Module) -> bool:
    """Whether a process holds but a part of a model, so that all must call it together."""
    return any(map(is_cut, model.parameters()))


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a part of its numbers, or all where it isn't cut."""
    if _is_fsdp_s(tensor):
        return cast(Tensor, cast(Any, tensor).to_local())
    return cast(Tensor, cast(Any, tensor).ds_tensor) if _is_zero_s(tensor) else tensor


class Banks(Protocol):
    """What is asked of the banks of a model (`banks.VectorBanks`)."""

    in_care_of_fsdp: bool | None
    pool: MatrixPool


def mixes_by_layer(model: nn.Module, banks: Banks) -> bool:
    """Whether each layer must mix for itself, since parameters of the model are cut.

    Those that FSDP cut are mixed unit by unit; the pool of the banks is told which these are.

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
    if banks.in_care_of_fsdp and not torch.compiler.is_compiling():
        _find_units(model, banks.pool)
        return False
    if not is_cut_over_processes(model):
        return False
    _tell_zero(banks)
    return True


def _find_units(model: nn.Module, pool: MatrixPool) -> None:
    """Tell the pool, once, with which module FSDP makes each layer whole: the nearest around it."""
    layers = {name: layer for each in pool.layers.values() for name, layer in each.items()}
    if pool.units.keys() >= layers.keys():
        return
    from torch.distributed.fsdp import FSDPModule

    by_path: dict[str, str] = {}
    by_module: dict[int, str] = {}  # a layer may have another path than when it was adapted
    for path, module in model.named_modules():  # what is around a module comes before it
        unit = path if isinstance(module, FSDPModule) else by_path.get(path.rpartition(".")[0], "")
        by_path[path] = by_module[id(module)] = unit
    pool.units = {name: by_module.get(id(layer), "") for name, layer in layers.items()}
    for layer in layers.values():  # what another unit holds must wait for its turn
        linear = cast(Any, layer)
        unit = pool.units[linear.name_in_pool]
        linear.siblings = tuple(o for o in linear.siblings if pool.units[o.name_in_pool] == unit)


def _tell_zero(banks: Banks) -> None:
    """Tell ZeRO-3, once, which parameters each layer needs that aren't its own module's.

    It finds out by itself, but within the first pass, and then takes the next one for another.
    """
    for layer in (
        cast(nn.Module, la) for each in banks.pool.layers.values() for la in each.values()
    ):
        needed = [p for name, p in layer.named_parameters() if name.startswith("vblora_")]
        if not _is_zero_s(needed[0]) or id(needed[0]) in getattr(layer, "_external_params", ()):
            return
        import deepspeed

        for parameter in needed:
            deepspeed.zero.register_external_parameter(layer, parameter)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole. Where FSDP cut them, every process must call this."""
    return {key: cast(Any, t).full_tensor() if _is_fsdp_s(t) else t for key, t in tensors.items()}


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within, adapters and all that is trained are whole in this process, to be read or stored.

    Every process must enter it, between two passes of the model. It does nothing where nothing is
    cut. The base model's frozen weights stay as they are.
    """
    cut = [
        (module._parameters, name, parameter)
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
        and (parameter.requires_grad or "vblora_" in path)
        and is_cut(parameter)
    ]
    if any(_is_zero_s(parameter) for *_, parameter in cut):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter for *_, parameter in cut]):
            yield
        return
    _reshard(model if cut else nn.Module())
    gathered_ones = gathered({str(i): parameter.detach() for i, (*_, parameter) in enumerate(cut)})
    try:
        for (place, name, cut_one), tensor in zip(cut, gathered_ones.values(), strict=True):
            place[name] = nn.Parameter(tensor, requires_grad=cut_one.requires_grad)
        yield
    finally:
        for place, name, parameter in cut:
            place[name] = parameter


def _reshard(model: nn.Module) -> None:
    """Let FSDP put back its parts, which it leaves gathered after a pass without gradients."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def cut_alike(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, cut as FSDP cut the parameters of the same names: to be loaded into them."""
    from torch.distributed.tensor import distribute_tensor

    result = dict(tensors)
    for key, tensor in tensors.items():
        held: Any = parameters.get(key)
        if _is_fsdp_s(held) and not _is_fsdp_s(tensor):
            here = tensor.to(held.device)  # the same numbers in every process: none is sent
            result[key] = distribute_tensor(
                here, held.device_mesh, held.placements, src_data_rank=None
            )
    return result
