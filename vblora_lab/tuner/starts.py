"""Other starts than random numbers: an adapter that begins as the base model, or as a copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftConfig
from torch import Tensor, nn

from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.banks import VectorBanks
from vblora_lab.tuner.layer import VBLoRALayer

# TRL gives a model a second adapter, "ref", with the config of "default", and then copies all
# parameters that have ".default." in their names. Those of VB-LoRA end in ".default".
TRL_REFERENCE = "ref"


class _Start:
    """Whether new adapters begin at the base model; `register` asks for it."""

    asked_for = False


AT_BASE = _Start()


@torch.no_grad()
def start_at_base(model: nn.Module, adapter_name: str = "default") -> None:
    """Let a new adapter begin with B A = 0 exactly, so that the model computes what its base does.

    VB-LoRA as published starts with small random updates, where LoRA starts with B = 0. This is
    LoRA's start in a bank: the second half of the bank's vectors become zeros, every sub-vector of
    B chooses among them, and every one of A among the others. The numbers of the logits are those
    that were drawn; within each sub-vector, the largest move to the half that it chooses from. In
    the first step only the zeros that B chose learn, as in LoRA only B does; then all of it.

    Training by preferences is measured against the model of step 0 (TRL's `peft_config=` takes the
    base model for it), so it starts right only from here.

    Args:
        model: a PeftModel or tuner of this package.
        adapter_name: an adapter that isn't trained yet; what it had learned would be lost.

    Raises:
        TargetError: the model has no such adapter.
        ConfigError: its bank is that of other adapters too, or has fewer than 2 * topk vectors.
    """
    layers = adapted_layers(model, adapter_name)
    if not layers:
        raise TargetError(f"adapter_name={adapter_name!r}: the model has no adapter of that name.")
    first = next(iter(layers.values()))
    banks, topk = first.vblora_vector_bank, first.topk[adapter_name]
    bank = banks[adapter_name]
    half = len(bank) // 2
    if banks.is_shared(adapter_name):
        raise ConfigError(
            f"adapter_name={adapter_name!r}: uses the bank of another adapter, half of which would "
            "become zeros. Give it a bank of its own: freeze_bank=False."
        )
    if half < topk:
        raise ConfigError(
            f"num_vectors={len(bank)}: each half of the bank must have topk={topk} vectors to "
            f"choose from; use at least {2 * topk}.",
            field="num_vectors",
            suggestion=2 * topk,
        )
    bank[half:] = 0
    for layer in layers.values():
        logits_A, logits_B = layer.logits(adapter_name)
        logits_A.copy_(_favouring(logits_A, slice(0, half)))
        logits_B.copy_(_favouring(logits_B, slice(half, None)))


def _favouring(logits: Tensor, part: slice) -> Tensor:
    """The same numbers (..., num_vectors), in each row the largest within a part of it.

    The order of the numbers within the part, and within the rest, stays as it was.
    """
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[part] = True
    ascending = logits.sort(-1).values
    small, large = ascending.tensor_split([int((~inside).sum())], dim=-1)
    result = torch.empty_like(logits)
    for where, numbers in ((inside, large), (~inside, small)):
        rank = logits[..., where].argsort(-1).argsort(-1)
        result[..., where] = numbers.gather(-1, rank)
    return result


def begin_as_asked(tuner: nn.Module, adapter_name: str) -> None:
    """Let a new adapter begin at the base model, if that is asked for. Raises as `start_at_base`.

    One that is without memory yet, or only to be used, gets its numbers from a file.
    """
    bank = next(iter(adapted_layers(tuner, adapter_name).values())).vblora_vector_bank[adapter_name]
    if AT_BASE.asked_for and not bank.is_meta:
        start_at_base(tuner, adapter_name)


def source_of_reference(configs: Mapping[str, PeftConfig], adapter_name: str) -> str | None:
    """The adapter that TRL's reference adapter is to be a copy of; None for any other adapter.

    Args:
        configs: of a model by adapter, that of the new adapter among them as it was given.
        adapter_name: the new adapter.
    """
    if adapter_name != TRL_REFERENCE:
        return None
    given = configs[adapter_name]
    return next((n for n, own in configs.items() if own is given and n != adapter_name), None)


@torch.no_grad()
def copy_adapter(
    layers: Mapping[str, VBLoRALayer], banks: VectorBanks, source: str | None, target: str
) -> None:
    """Give an adapter the bank and the logits of another one of the same config.

    Args:
        layers: those that carry both.
        banks: of the model.
        source, target: names of the two adapters; no source, no copy.
    """
    if source is None:
        return
    banks[target].copy_(banks[source])
    for layer in layers.values():
        for ours, theirs in zip(layer.logits(target), layer.logits(source), strict=True):
            ours.copy_(theirs)
        layer.logits_are_complete[target] = layer.logits_are_complete[source]
