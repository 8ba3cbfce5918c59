"""The methods that `compare` compares: how each prepares a model, its rates and its size."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import peft
from peft import PeftConfig, PeftModel
from torch import nn

from vblora_lab.errors import ConfigError
from vblora_lab.planning.plan import plan
from vblora_lab.train.optimizer import SHORT_RUN, LearningRates, suited_rates
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.peft import get_peft_model


def _vblora(model: nn.Module, config: VBLoRAConfig) -> nn.Module:
    return get_peft_model(model, config)


def _lora(model: nn.Module, config: VBLoRAConfig) -> nn.Module:
    """LoRA of the same rank on the modules that the VB-LoRA config adapts."""
    targets = [target.name for target in plan(model, config).targets]
    lora = peft.LoraConfig(
        r=config.r, lora_alpha=config.r, target_modules=targets, task_type=config.task_type
    )
    return peft.get_peft_model(model, lora)


def _full(model: nn.Module, config: VBLoRAConfig) -> nn.Module:
    """All parameters, in a copy of their own, so that the base keeps its weights."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.requires_grad_(True)


METHODS: dict[str, Callable[[nn.Module, VBLoRAConfig], nn.Module]] = {
    "VB-LoRA": _vblora,
    "LoRA": _lora,
    "full fine-tuning": _full,
}
FULL_RATES = LearningRates(other=5e-5)
SHORT_LORA_RATE = 5e-3
"""LoRA's in all linear layers in runs of hundreds of steps; 5e-3 and 1e-2 were the best rates of
all ranks in `benchmarks/pareto.py`."""


def default_rates(method: str, steps: int) -> LearningRates:
    """Peak rates that a method gets where none are given, for a run of so many steps."""
    if method == "full fine-tuning":
        return FULL_RATES
    rates = suited_rates(steps)
    has_other = method != "VB-LoRA" and steps <= SHORT_RUN
    return dataclasses.replace(rates, other=SHORT_LORA_RATE) if has_other else rates


def prepare(model: nn.Module, method: str, config: PeftConfig) -> nn.Module:
    """The model, ready to be trained with a method; it is changed in place.

    Args:
        model: with weights that may be shared; those that the method trains become its own.
        method: one of `METHODS` if ``config`` is a VBLoRAConfig, else any name.
        config: a VBLoRAConfig, or what PEFT is to inject. Never changed.

    Raises `ConfigError` for a config that is none of PEFT's, or that PEFT can't use here.
    """
    if isinstance(config, VBLoRAConfig):
        return METHODS.get(method, _vblora)(model, config)
    if not isinstance(config, PeftConfig):
        raise ConfigError(f"{method!r}: {config!r} must be a config of PEFT, such as a LoraConfig")
    try:
        return peft.get_peft_model(model, copy.deepcopy(config))
    except (ValueError, TypeError) as error:
        what = type(config).__name__
        raise ConfigError(f"{method!r}: PEFT can't use this {what} here: {error}") from error


def has_bank(method: str, config: PeftConfig) -> bool:
    """Whether a method is VB-LoRA, so that there are selections from a bank to report."""
    return isinstance(config, VBLoRAConfig) and METHODS.get(method, _vblora) is _vblora


def trained_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that ``save_pretrained`` writes for this method's result."""
    tuner = getattr(model, "base_model", None)
    if isinstance(tuner, VBLoRAModel):
        return tuner.stored_bytes()
    if isinstance(model, PeftModel):
        return sum(tensor.nbytes for tensor in peft.get_peft_model_state_dict(model).values())
    # Tied weights are stored once.
    return sum({t.data_ptr(): t.nbytes for t in model.state_dict().values()}.values())
