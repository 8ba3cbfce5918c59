"""Walking a model: which modules it has of its own, and which of them are linear layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import EMBEDDING_LAYER_NAMES, SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import VBLoRALayer
from vblora_lab.tuner.wrapped import LinearLayer

CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


def base_of(model: nn.Module) -> nn.Module:
    """The base model in a PeftModel or a tuner; any other model is its own base."""
    if isinstance(model, PeftModel):
        model = model.base_model
    return model.model if isinstance(model, BaseTuner) else model


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by name, without the root and without the insides of adapters.

    (Nor are these walked: each adapter has modules in every layer that it adapts.)
    """
    named: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    ahead: list[tuple[str, nn.Module]] = [("", model)]
    while ahead:
        name, module = ahead.pop()
        if module in seen:
            continue
        seen.add(module)
        if name:
            named[name] = module
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            prefix = f"{name}." if name else ""
            inside = [
                (prefix + key, child) for key, child in module._modules.items() if child is not None
            ]
            ahead += reversed(inside)
    return named


def linear_modules(model: nn.Module) -> dict[str, LinearLayer]:
    """Every nn.Linear and Conv1D by full name, unwrapped, output heads included."""
    layers = {name: unwrapped(module) for name, module in own_modules(model).items()}
    return {name: layer for name, layer in layers.items() if isinstance(layer, LinearLayer)}


def modules_to_save(model: nn.Module, config: VBLoRAConfig) -> dict[str, nn.Module]:
    """The modules that PEFT will copy, train and store whole, by full name."""
    endings = tuple(config.modules_to_save or ())
    inside: tuple[str, ...] = ()
    saved: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        wrapped = isinstance(module, AuxiliaryTrainingWrapper)
        if name.endswith(endings) and not name.startswith(inside):
            saved[name] = module.original_module if wrapped else module
        if wrapped or name in saved:
            inside += (name + ".",)
    return saved


@contextmanager
def flags_of_copies_kept(model: nn.Module) -> Iterator[None]:
    """Leave what is trained of the copies of modules_to_save as it was before the block."""
    copies = [m for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    trained = [(p, p.requires_grad) for module in copies for p in module.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def head_stored_whole(model: nn.Module, config: VBLoRAConfig) -> nn.Module | None:
    """The output head, if PEFT stores its base layer too since the config adapts it by that name.

    That is a weight (vocabulary, hidden size), far larger than the adapter; it is left out by
    save_pretrained(..., save_embedding_layers=False).

    Args:
        model: the base model, adapted already or not.
        config: with target_modules filled in.
    """
    wanted = config.target_modules or ()
    if isinstance(wanted, str):
        hit = [name for name in own_modules(model) if re.fullmatch(wanted, name)]
        named = {name.rpartition(".")[2] for name in hit}
    else:
        named = set(wanted)
    if not isinstance(model, PreTrainedModel) or named.isdisjoint(EMBEDDING_LAYER_NAMES):
        return None
    head = model.get_output_embeddings()
    return None if head is None else unwrapped(head)


def unwrapped(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, VBLoRALayer) else module


def output_head(model: nn.Module, config: VBLoRAConfig) -> nn.Module | None:
    """The layer that 'all-linear' leaves out, as in PEFT: the one that makes the predictions."""
    if not isinstance(model, PreTrainedModel):
        return None
    head = model.get_output_embeddings()
    if head is None and config.task_type == "SEQ_CLS":
        heads = (getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES)
        head = next((module for module in heads if module is not None), None)
    return None if head is None else unwrapped(head)


def experts_in(named: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Parameters that hold the weights of all experts of a mixture, by the module they are in.

    Args:
        named: modules by full name.
    """
    found: dict[str, list[str]] = {}
    for name, module in named.items():
        if "expert" in name.rpartition(".")[2].lower():
            own = module.named_parameters(recurse=False)
            weights = [parameter_name for parameter_name, p in own if p.dim() == 3]
            found |= {name: weights} if weights else {}
    return found


def layer_lists(named: Iterable[str]) -> list[str]:
    """Names of the lists whose members are numbered: 'layers' for 'model.layers.0'."""
    found = (re.search(r"(?:^|\.)([^.]+)\.\d+\.", name) for name in named)
    return list(dict.fromkeys(match.group(1) for match in found if match))
