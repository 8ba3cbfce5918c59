"""What `speed.py` takes from others where it is installed: 4-bit weights, and Liger's kernels."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

import torch
from speed_rows import CUDA
from torch import nn
from transformers.models.llama import modeling_llama

LIGER = ", Liger"
MODULES = {"liger_kernel": "liger_kernel.transformers"}  # what of a package is used
T = TypeVar("T")
WITH_LIGER = [method + LIGER for method in ("PEFT LoRA", "vblora_lab")]


def why_not(package: str) -> str | None:
    """Why a package's kernels can't be measured here; None if they can."""
    if not CUDA:
        return "there is no GPU"
    if not importlib.util.find_spec(package):
        return f"{package} isn't installed"
    try:
        importlib.import_module(MODULES.get(package, package))
    except (ImportError, OSError, RuntimeError) as error:  # made for other versions, say
        return f"{package} can't be imported ({error})"
    return None


def unless_broken(method: str, call: Callable[[], T]) -> T | None:
    """What a call gives; None, and a printed line, if it fails in a method with Liger's kernels.

    They are another's, so that the others are measured nevertheless. Other methods fail as ever.
    """
    try:
        return call()
    except Exception as error:
        if LIGER not in method:
            raise
        print(f"{method}: left out, {type(error).__name__}: {error}", flush=True)
    return None


def installed() -> dict[str, str]:
    """Versions of those packages, for what is measured with them."""
    found = [name for name in ("bitsandbytes", "liger_kernel") if importlib.util.find_spec(name)]
    return {name: importlib.metadata.version(name) for name in found}


# --- bitsandbytes


def in_four_bits(base: Any) -> Any:
    """The same model with the linear layers of its decoder in NF4, as QLoRA stores them.

    Scales are quantised too, products are of bfloat16, and the head stays as it is. Weights are
    replaced one after the other, so that little more memory is taken than by the model alone.
    """
    import bitsandbytes as bnb

    for name, linear in list(base.named_modules()):
        if not isinstance(linear, nn.Linear) or ".layers." not in name:
            continue
        with torch.device("meta"):
            packed = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
            )
        packed.bias = linear.bias
        device = linear.weight.device
        packed.weight = bnb.nn.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", module=packed
        ).to(device)  # this is when bitsandbytes quantises
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, packed)
    base.is_loaded_in_4bit = True  # what PEFT's LoRA asks
    return base.train()


# --- Liger


def with_liger(model: Any, step: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    """A training step with Liger's kernels for Llama (its defaults) in this model alone.

    Liger's rotary embedding replaces a function of transformers, for every model; here it does
    while the step runs, so that the other methods are measured as they are.

    Args:
        model: adapted; its modules are changed.
        step: of this model.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    names = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
    as_they_are = {name: getattr(modeling_llama, name) for name in names}
    with mock.patch.multiple(modeling_llama, **as_they_are):  # and again so afterwards
        apply_liger_kernel_to_llama(model=model.get_base_model())
        rotary = modeling_llama.apply_rotary_pos_emb

    def call(batch: Any) -> torch.Tensor:
        with mock.patch.object(modeling_llama, "apply_rotary_pos_emb", rotary):
            return step(batch)

    return call
