"""What an adapter's file may hold beside bank and logits: tensors of the base model.

A file may come from anybody, and what it holds is written into the model. So it may hold what its
config says is trained, and nothing else: any other name could be that of a weight of the base.

PEFT also writes tensors that no VB-LoRA adapter trains: embeddings, where the vocabulary has
another size or the output head is adapted, and copies of biases that it keeps in several places.
They are never loaded; embeddings that differ from the model's are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from vblora_lab.errors import CheckpointError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.formats import LAYER_PREFIX, check_dtype
from vblora_lab.tuner.modules import base_of, modules_to_save, own_modules

Tensors = Mapping[str, Tensor]

WRAPPED = re.compile(r"(?:^|(?<=\.))(?:base_layer|original_module)\.")


class Beside(NamedTuple):
    """Tensors of a model by the keys of PEFT's files.

    trained: the biases and modules that a config trains. A file must hold them all.
    embeddings: a file may hold them, if they are the model's own.
    copies: keys that a file may have, and that are ignored.
    """

    trained: dict[str, Tensor]
    embeddings: dict[str, Tensor]
    copies: frozenset[str]

    def unloaded(self) -> frozenset[str]:
        """The keys that are known and yet not loaded."""
        return self.copies | (self.embeddings.keys() - self.trained.keys())

    def check(self, tensors: Tensors, where: str) -> None:
        """Look at the tensors of a file that are the model's in name and shape.

        Raises:
            CheckpointError: they have another kind of numbers, or NaN, or infinite ones; or they
                are embeddings of another model.
        """
        for key in sorted(tensors.keys() & self.trained.keys()):
            held = self.trained[key]
            if held.dtype != tensors[key].dtype:
                check_dtype(tensors[key], f"{where}: {key}", like=held)
            if held.is_floating_point() and not _finite(tensors[key]):
                raise CheckpointError(
                    f"{where}: {key} is NaN or infinite; the training probably diverged."
                )
        for key in sorted((tensors.keys() & self.embeddings.keys()) - self.trained.keys()):
            if not _same(tensors[key], self.embeddings[key]):
                raise CheckpointError(
                    f"{where}: {key} is a weight of the base model and differs from this model's. "
                    "VB-LoRA doesn't train it, so it is not loaded from an adapter. If it belongs "
                    "to the adapter (a vocabulary that was resized), copy it into the base model "
                    "first, or name its module in modules_to_save and train it."
                )


def beside_base(base: nn.Module, config: VBLoRAConfig, targets: Iterable[str]) -> Beside:
    """For a config that is about to be injected into a base model, adapted or not.

    Args:
        base: the base model. Not changed.
        config: with the heads of its task filled in.
        targets: full names of the layers that it adapts.
    """
    return _beside(base, config, set(targets), modules_to_save(base, config))


def beside_adapted(
    model: nn.Module, config: VBLoRAConfig, targets: Iterable[str], adapter_name: str
) -> Beside:
    """For an adapter that is there.

    Args:
        model: a PeftModel, or a model that PEFT injected adapted layers into.
        config: of the adapter.
        targets: full names of the layers that carry it.
        adapter_name: which adapter.
    """
    saved = {
        _plain(f"{name}.").removesuffix(".")
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save
    }
    return _beside(model, config, set(targets), saved)


def _beside(
    model: nn.Module, config: VBLoRAConfig, targets: set[str], saved: Iterable[str]
) -> Beside:
    inside = tuple(f"{name}." for name in saved)
    embeddings = _embedding_names(model)
    trained: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    copies: set[str] = set()
    for name, tensor in _tensors(model).items():
        module, _, leaf = name.rpartition(".")
        is_target = module in targets
        key = f"{LAYER_PREFIX}{module}.base_layer.{leaf}" if is_target else LAYER_PREFIX + name
        within = next((prefix for prefix in inside if name.startswith(prefix)), None)
        if within is not None:
            trained[LAYER_PREFIX + name] = tensor
            rest = name.removeprefix(within)
            parts = ("modules_to_save", "original_module")
            copies |= {f"{LAYER_PREFIX}{within}{part}.{rest}" for part in parts}
        elif leaf == "bias" and (
            config.bias == "all" or (config.bias == "vblora_only" and is_target)
        ):
            trained[key] = tensor
        elif module in embeddings:
            others[key] = tensor
    return Beside(trained, others, frozenset(copies))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The base model's own, by their names there."""
    named = {_plain(key): tensor for key, tensor in model.state_dict().items()}
    apart = re.compile(r"(^|\.)(vblora_\w+|modules_to_save)\.")
    return {name: tensor for name, tensor in named.items() if not apart.search(name)}


def _plain(name: str) -> str:
    """A name in an adapted model without what wraps a module: as in the base model."""
    return WRAPPED.sub("", name.removeprefix(LAYER_PREFIX).removeprefix("base_model."))


def _embedding_names(model: nn.Module) -> set[str]:
    """The modules that PEFT may store though no adapter trains them: embeddings in and out."""
    base = base_of(model)
    if not isinstance(base, PreTrainedModel):
        return set()
    heads = [base.get_output_embeddings()]
    try:
        heads.append(base.get_input_embeddings())
    except NotImplementedError:  # a model that has none
        heads.append(None)
    return {name for name, module in own_modules(base).items() if any(module is h for h in heads)}


def _finite(tensor: Tensor) -> bool:
    return tensor.itemsize == 1 or bool(torch.isfinite(tensor).all())  # float8: no such function


def _same(stored: Tensor, held: Tensor) -> bool:
    """Whether these are the same numbers, in the coarser of their two dtypes."""
    if "meta" in (stored.device.type, held.device.type):
        return True  # put aside, or never there: nothing is written either
    stored = stored.to(held.device)
    return torch.equal(stored.to(held.dtype), held) or torch.equal(stored, held.to(stored.dtype))
