"""What is trained and stored besides bank and logits: biases, whole modules, an adapted head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import VBLoRALayer
from vblora_lab.tuner.modules import head_stored_whole, modules_to_save, own_modules
from vblora_lab.tuner.wrapped import LinearLayer


@dataclass(frozen=True)
class Others:
    """Parameters of the model that are trained, those of them that are copies, and file bytes."""

    trained: list[Tensor]
    copies: list[Tensor]
    stored_bytes: int


def others_of(model: nn.Module, config: VBLoRAConfig, layers: Iterable[LinearLayer]) -> Others:
    saved = modules_to_save(model, config).values()
    copies: list[Tensor] = [p for module in saved for p in module.parameters()]
    replaced = {id(p) for p in copies}  # of such a bias the copy is trained
    biases = _biases(model, config, layers)
    in_place = once(b for b in biases if isinstance(b, nn.Parameter) and id(b) not in replaced)
    stored = [*biases, *(t for module in saved for t in _stored_whole(module, config))]
    head = head_stored_whole(model, config)
    if head is not None and any(layer is head for layer in layers):
        there = {id(bias) for bias in biases}
        stored += [p for p in head.parameters() if id(p) not in there]
    return Others([*copies, *in_place], copies, sum(tensor.nbytes for tensor in stored))


def _biases(model: nn.Module, config: VBLoRAConfig, layers: Iterable[LinearLayer]) -> list[Tensor]:
    """The biases of the base model that PEFT stores with an adapter."""
    if config.bias == "none":
        return []
    owners = _base_modules(model) if config.bias == "all" else iter(layers)
    stored = (
        module._parameters.get("bias", module._buffers.get("bias"))
        for module in owners
        if "bias" not in module._non_persistent_buffers_set
    )
    return [bias for bias in stored if bias is not None]


def _base_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that the model has without any adapter."""
    yield model
    for module in own_modules(model).values():
        if isinstance(module, AuxiliaryTrainingWrapper):
            yield from module.original_module.modules()
        else:
            yield module.get_base_layer() if isinstance(module, VBLoRALayer) else module


def _stored_whole(module: nn.Module, config: VBLoRAConfig) -> list[Tensor]:
    """What PEFT stores of a module to save: all of it, and with bias='all' its biases again."""
    stored = module.state_dict(keep_vars=True)
    again = [k for k in stored if k.rpartition(".")[2] == "bias" and config.bias == "all"]
    return [*stored.values(), *(stored[key] for key in again)]


def once(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, though several modules may share it."""
    return list({id(tensor): tensor for tensor in tensors}.values())
