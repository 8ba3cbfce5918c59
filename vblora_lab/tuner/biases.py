"""Biases of the base model that an adapter trains in place, as its config.bias says.

There is one set of them, whichever adapters a model has. So one adapter of a model may train them,
and they are trained only while that one is active.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from peft import PeftConfig
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from vblora_lab.errors import ConfigError
from vblora_lab.tuner.config import VBLoRAConfig


def check_one_set(configs: Iterable[PeftConfig]) -> None:
    """Raise `ConfigError` if more than one of a model's adapters would train biases."""
    modes = [cast(VBLoRAConfig, config).bias for config in configs]
    training = [mode for mode in modes if mode != "none"]
    if len(training) > 1:
        raise ConfigError(
            f"bias={training[-1]!r}: another adapter of this model "
            "trains biases already, and there is only one set of them; use bias='none'."
        )


def trained_biases(model: nn.Module, adapter_name: str, mode: str) -> list[nn.Parameter]:
    """The biases that an adapter trains.

    Args:
        model: the adapted base model.
        adapter_name: which adapter.
        mode: its config.bias.
    """
    if mode == "none":
        return []
    ending = ".bias" if mode == "all" else ".base_layer.bias"
    apart: tuple[str, ...] = ()  # copies, and originals of which this adapter has a copy
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            apart += (f"{name}.modules_to_save.",)
            apart += (f"{name}.",) if adapter_name in module.modules_to_save else ()
    return [
        parameter
        for name, parameter in model.named_parameters()
        if f".{name}".endswith(ending) and not name.startswith(apart)
    ]


def train_biases(
    model: nn.Module, configs: Mapping[str, PeftConfig], training: Iterable[str]
) -> None:
    """Train the biases of these adapters, and freeze those of the others.

    Args:
        model: the adapted base model.
        configs: of all adapters, by name.
        training: names of the adapters that are trained now.
    """
    training = set(training)
    for name, config in configs.items():
        for bias in trained_biases(model, name, cast(VBLoRAConfig, config).bias):
            bias.requires_grad_(name in training)
