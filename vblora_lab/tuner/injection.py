"""Adding an adapter to a model changes all of it that must change, or nothing.

PEFT replaces layers one after the other, and leaves what it did if one of them fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from vblora_lab.errors import ConfigError
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.banks import VectorBanks
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import NO_ADAPTER, VBLoRALayer
from vblora_lab.tuner.modules import own_modules
from vblora_lab.tuner.of_one import of_one
from vblora_lab.tuner.wrapped import adapter_dtype

UNFIT_FOR_A_FOLDER = re.compile(r"[/\\:\x00-\x1f\x7f\ud800-\udfff]")  # drives have a colon
LONGEST_NAME = 200  # bytes; file systems take 255


def check_adapter_name(name: str, model: nn.Module) -> None:
    """Raise `ConfigError` for a name that would get lost among the keys of the model, or that a
    folder can't have: PEFT saves an adapter in one of its name.
    """
    reserved = {NO_ADAPTER, *dir(VectorBanks()), *dir(nn.ModuleDict())}
    if not isinstance(name, str) or not name or "." in name or name in reserved:
        raise ConfigError(
            f"adapter_name={name!r}: must be a word without dots, and none that a parameter "
            "dictionary uses itself (such as 'keys' or 'training')."
        )
    if UNFIT_FOR_A_FOLDER.search(name) or len(name.encode()) > LONGEST_NAME:
        fit = UNFIT_FOR_A_FOLDER.sub("_", name).encode()[:LONGEST_NAME].decode(errors="ignore")
        raise ConfigError(
            f"adapter_name={name!r}: names the folder that the adapter is saved in, so it must be "
            f"at most {LONGEST_NAME} bytes long, without slashes, colons and control characters; "
            f"{fit!r} would do."
        )
    if any(name in module_name.split(".") for module_name in own_modules(model)):
        # When PEFT saves an adapter, it drops each key that has another adapter's name in it.
        raise ConfigError(
            f"adapter_name={name!r}: is part of a module's name in this model, whose weights PEFT "
            f"would take for this adapter's; use another, such as {name + '_adapter'!r}."
        )


class Configs(dict[str, PeftConfig]):
    """The configs by adapter. PeftModel asks for one in every pass, even when none is left."""

    def __missing__(self, adapter_name: str) -> PeftConfig:
        if self:
            raise KeyError(adapter_name)
        return VBLoRAConfig(inference_mode=True)  # of no adapter: the pass is the base model's


@contextmanager
def restored_on_error(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """If the block fails, take back whatever it did to add an adapter to a base model.

    The block doesn't see the parameters of other adapters when it walks over the model.
    """
    with of_one(adapter_name):
        modules = {module: dict(module._modules) for module in model.modules()}
        adapted = set(adapted_layers(model, adapter_name).values())
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        configs = dict(model.__dict__.get("peft_config", {}))
        of_passes: tuple[dict[int, Any], ...] = (
            model._forward_pre_hooks,
            model._forward_hooks,
            model._forward_hooks_always_called,
        )
        hooks = [dict(each) for each in of_passes]
        try:
            yield
        except BaseException:
            for module, children in modules.items():
                if isinstance(module, VBLoRALayer) and module not in adapted:
                    module.delete_adapter(adapter_name)
                    module.pool.layers.pop(adapter_name, None)
                module._modules.clear()
                module._modules.update(children)
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
            for each, before in zip(of_passes, hooks, strict=True):
                each.clear()
                each.update(before)
            if adapter_name not in configs:
                model.__dict__.get("peft_config", {}).pop(adapter_name, None)
            if not configs:
                model.__dict__.pop("peft_config", None)
            raise


def place_bank(
    banks: VectorBanks, adapter_name: str, device: torch.device, low_cpu_mem_usage: bool
) -> bool:
    """Move a bank that was just drawn to the device of the layers.

    Args:
        banks: of the model.
        adapter_name: whose bank.
        device: where the layers compute; "meta" for a base without memory.
        low_cpu_mem_usage: PEFT's: the adapter gets shapes alone, to be filled from a file.

    Returns:
        Whether the bank is on "meta", and logits should be.
    """
    bank = banks[adapter_name].detach()
    if bank.is_meta:  # PEFT has another way of asking for it: a block under torch.device("meta")
        return True
    on_meta = low_cpu_mem_usage or device.type == "meta"
    banks[adapter_name] = nn.Parameter(bank.to("meta" if on_meta else device))
    return on_meta


def cast_adapter(
    layers: Iterable[VBLoRALayer],
    banks: VectorBanks,
    adapter_name: str,
    autocast_adapter_dtype: bool,
) -> None:
    """Bring an adapter to the dtype of the layers it adapts, but to float32 at least.

    In place: parameters keep their identity and their requires_grad. A bank that other adapters
    use too stays as it is.

    Args:
        layers: those that carry the adapter.
        banks: of the model.
        adapter_name: which adapter.
        autocast_adapter_dtype: False to keep half precision where the base layer has it.
    """
    bank = [] if banks.is_shared(adapter_name) else [banks[adapter_name]]
    for layer in layers:
        dtype = adapter_dtype(layer.base_weight().dtype, autocast_adapter_dtype)
        for parameter in (*layer.logits(adapter_name), *bank):
            parameter.data = parameter.data.to(dtype)
