"""Functions that do for VB-LoRA on this package's classes what PEFT's do: adapt, add, save, load.

Models made here go on working when PEFT's own entries are back (see `seam`): their parameters have
PEFT's names, so that PEFT's save_pretrained and load_adapter handle them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import peft
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from torch import Tensor, nn

from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.tuner import folders
from vblora_lab.tuner.banks import VectorBanks, check_bank_fits, find_bank
from vblora_lab.tuner.config import VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.injection import check_adapter_name, restored_on_error
from vblora_lab.tuner.loading import Bank, checked_config, given_bank, local_folder
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.seam import register as register
from vblora_lab.tuner.seam import unregister as unregister
from vblora_lab.tuner.seam import using as using


@contextmanager
def _without_known_warning() -> Iterator[None]:
    """PEFT asks transformers for an attribute that is deprecated there; no caller can change it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def get_peft_model(
    model: nn.Module,
    config: PeftConfig,
    adapter_name: str = "default",
    *,
    bank: Bank | None = None,
    freeze_bank: bool | None = None,
    **kwargs: Any,
) -> PeftModel:
    """Adapt a model with VB-LoRA: peft.get_peft_model on this package's classes.

    Args:
        model: the base model; its linear layers are wrapped in place.
        config: a VBLoRAConfig, this package's or PEFT's. Never changed.
        adapter_name: name of the adapter.
        bank: a bank to use instead of a random one: the folder or Hub id of a stored adapter, or a
            tensor (num_vectors, vector_length).
        freeze_bank: what becomes of a bank that is given. True, which is the default: only logits
            are trained, and no bank is stored with the adapter. False: the bank is trained too.
        **kwargs: of peft.get_peft_model: autocast_adapter_dtype, low_cpu_mem_usage, revision.

    Returns:
        The PeftModel for config.task_type.

    Raises:
        ConfigError, TargetError, CheckpointError: the model is as it was.
    """
    _check_is_module(model)
    if isinstance(model, PeftModel):
        raise TargetError(
            f"model is a {type(model).__name__} already. Add another adapter with "
            "model.add_adapter(name, config), or start afresh from model.unload()."
        )
    check_adapter_name(adapter_name, model)
    config = as_vblora_config(config)
    numbers = given_bank(bank)
    if numbers is None and freeze_bank is not None:
        raise ConfigError(
            f"freeze_bank={freeze_bank}: says what becomes of a bank that is given; give bank= too."
        )
    if numbers is not None:
        check_bank_fits(config, numbers, "the given bank")
    with using(), restored_on_error(model, adapter_name), _without_known_warning():
        adapted = peft.get_peft_model(model, config, adapter_name=adapter_name, **kwargs)
        if numbers is not None:
            _use_bank(adapted, adapter_name, numbers, freeze_bank is not False)
        return adapted


def add_adapter(
    model: PeftModel,
    adapter_name: str,
    config: PeftConfig,
    *,
    freeze_bank: bool = True,
    bank_of: str = "default",
    **kwargs: Any,
) -> None:
    """Add an adapter for another task that uses the bank of one that is there.

    The new adapter isn't active yet (`model.set_adapter`). Training it trains logits alone, and its
    files have no bank: `from_pretrained` finds it, and `save_with_bank` puts it in for PEFT. (For
    an adapter with a random bank of its own, use `model.add_adapter`.)

    Args:
        model: a PeftModel made by this package.
        adapter_name: name of the new adapter.
        config: with the num_vectors and vector_length of that bank; all else may differ. Never
            changed.
        freeze_bank: share the bank itself, which is frozen from now on for both adapters. False to
            give the new one a copy, which is trained and stored with it.
        bank_of: the adapter that has the bank.
        **kwargs: of PeftModel.add_adapter: autocast_adapter_dtype, low_cpu_mem_usage.

    Raises:
        ConfigError, TargetError: the model is as it was.
    """
    _check_accepts(model, adapter_name)
    banks = _banks(model)
    if bank_of not in banks:
        there = ", ".join(map(repr, banks))
        raise ConfigError(f"bank_of={bank_of!r}: no adapter has that name; there are {there}.")
    config = as_vblora_config(config)
    check_bank_fits(config, banks[bank_of], f"the bank of adapter {bank_of!r}")
    base = model.get_base_model()
    with using(), restored_on_error(base, adapter_name), _without_known_warning():
        model.add_adapter(adapter_name, config, **kwargs)
        _use_bank(model, adapter_name, banks[bank_of], freeze_bank)


def save_with_bank(
    model: PeftModel, folder: str | os.PathLike[str], adapter_name: str = "default", **kwargs: Any
) -> Path:
    """model.save_pretrained for one adapter, with the bank in its file even if that is shared.

    For use without this package: PEFT gives an adapter that was stored without its bank a random
    one, and says nothing.

    Args:
        model: a PeftModel made by this package.
        folder: as in save_pretrained; an adapter of another name than "default" goes into a
            folder of that name in it.
        adapter_name: which adapter.
        **kwargs: of PeftModel.save_pretrained.

    Returns:
        The folder to load from.

    Raises:
        TargetError, ConfigError: the model wasn't made by this package, or has no such adapter.
    """
    _check_is_ours(model)
    banks = _banks(model)
    cast(VBLoRAModel, model.base_model).check_adapter_exists(adapter_name)
    # Until it is stored, the bank counts as its own.
    borrowed = banks.fingerprints.pop(adapter_name, None)
    try:
        with using():
            model.save_pretrained(str(folder), selected_adapters=[adapter_name], **kwargs)
    finally:
        if borrowed is not None:
            banks.fingerprints[adapter_name] = borrowed
    return Path(folder) if adapter_name == "default" else Path(folder) / adapter_name


def from_pretrained(
    model: nn.Module,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    is_trainable: bool = False,
    *,
    bank: Bank | None = None,
    **kwargs: Any,
) -> PeftModel:
    """Load a stored VB-LoRA adapter, written here or by PEFT, onto a base model.

    Config, names, shapes and numbers are checked before the model is touched. Pickled weights
    aren't read.

    Args:
        model: the base model, or a PeftModel made here, which gets one more adapter.
        path: folder of the adapter, or its id on the Hugging Face Hub ("owner/name").
        adapter_name: name to give it.
        is_trainable: whether training is to go on; needs a file with all logits.
        bank: for an adapter that was stored without its bank, if no adapter of the model has it:
            the folder or Hub id of an adapter that has, or the tensor. It is frozen from now on for
            every adapter that has it.
        **kwargs: of PeftModel.from_pretrained: torch_device, low_cpu_mem_usage (if not given,
            True where it can be), subfolder, revision, token, cache_dir and so on.

    Returns:
        The PeftModel, in eval mode unless is_trainable. For a PeftModel, that same one; its active
        adapter stays active.

    Raises:
        CheckpointError: no adapter there, one of another method, a damaged or pickled file, one
            that doesn't fit the model, one without its bank, or one that can't be trained.
        ConfigError: the name is taken, or a bank is given that isn't needed.
        TargetError: the config names no layers of this model. In any case the model is as it was.
    """
    hub = {key: kwargs.pop(key, None) for key in ("subfolder", "revision", "token", "cache_dir")}
    _check_is_module(model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    check_adapter_name(adapter_name, base)
    if isinstance(model, PeftModel):
        _check_accepts(model, adapter_name)
    folder = local_folder(path, hub)
    config, has_bank = checked_config(base, folder, is_trainable)
    found = None
    if not has_bank:
        banks = _banks(model) if isinstance(model, PeftModel) else None
        found = find_bank(folder, banks, given_bank(bank))
        check_bank_fits(config, found, "its bank")
    elif bank is not None:
        raise ConfigError(f"bank: {folder} has a bank of its own; leave bank= out.")
    with (
        folders.as_peft_stores(folder) as folder,
        using(),
        restored_on_error(base, adapter_name),
        _without_known_warning(),
    ):
        if found is not None:
            model = _injected(model, config, adapter_name, kwargs)
            _use_bank(model, adapter_name, found, freeze_bank=True)
        elif config.bias == "none" and not config.modules_to_save:
            # All that is new comes from the file, in its own dtype: none has to be drawn first.
            kwargs.setdefault("low_cpu_mem_usage", True)
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name, is_trainable=is_trainable, **kwargs)
            return model
        return PeftModel.from_pretrained(
            model, folder, adapter_name, is_trainable=is_trainable, config=config, **kwargs
        )


def _injected(
    model: nn.Module, config: VBLoRAConfig, adapter_name: str, kwargs: dict[str, Any]
) -> PeftModel:
    """Do what PEFT does when it loads an adapter, up to the point where it reads the file."""
    how = {k: kwargs[k] for k in ("autocast_adapter_dtype", "low_cpu_mem_usage") if k in kwargs}
    if not isinstance(model, PeftModel):
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type or "", PeftModel)
        return kind(model, config, adapter_name, **how)
    model.add_adapter(adapter_name, config, **how)
    if not config.inference_mode:
        model.set_requires_grad(adapter_name)
    return model


def _use_bank(model: PeftModel, adapter_name: str, bank: Tensor, freeze_bank: bool) -> None:
    if freeze_bank:
        _banks(model).share(adapter_name, bank)
    else:
        _banks(model).start_from(adapter_name, bank)


def _banks(model: PeftModel) -> VectorBanks:
    return cast(VBLoRAModel, model.base_model).vblora_vector_bank


def _check_is_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"model={model!r}: must be a torch.nn.Module, such as the base model that "
            "AutoModelForCausalLM.from_pretrained gives."
        )


def _check_is_ours(model: PeftModel) -> None:
    tuner = getattr(model, "base_model", model)
    if not isinstance(tuner, VBLoRAModel):
        raise TargetError(
            f"model is a {type(model).__name__} on {type(tuner).__name__}, not one made by "
            "vblora_lab; load onto model.unload(), or with model.load_adapter."
        )


def _check_accepts(model: PeftModel, adapter_name: str) -> None:
    _check_is_ours(model)
    if adapter_name in model.peft_config:
        there = ", ".join(map(repr, model.peft_config))
        raise ConfigError(
            f"adapter_name={adapter_name!r}: is taken; the model has {there}. Give another name, "
            "or call model.delete_adapter first."
        )
