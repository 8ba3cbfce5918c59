"""From a file to a model: what is found, and what is checked before a number of it is used.

`checked_config` is for a folder that is about to be loaded onto a base model (`from_pretrained`),
`checked_state_dict` for tensors that PEFT is about to put into an adapter that is there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from vblora_lab.errors import CheckpointError, InferenceOnlyError
from vblora_lab.tuner import folders, formats
from vblora_lab.tuner.adapted import adapted_layers, features
from vblora_lab.tuner.banks import FINGERPRINT_NAME, VectorBanks, bank_of_folder
from vblora_lab.tuner.beside import Beside, beside_adapted, beside_base
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.eight_bits import INT8_NAME
from vblora_lab.tuner.targets import resolve

# --- where it is

Bank = str | os.PathLike[str] | Tensor


def local_folder(path: str | os.PathLike[str], hub: dict[str, Any]) -> str:
    """The adapter's folder on this machine; what looks like a Hub id is downloaded.

    Args:
        path: a folder, or an id on the Hub ("owner/name").
        hub: subfolder, and arguments of `snapshot_download`: revision, token, cache_dir.

    Raises:
        CheckpointError: neither is there.
    """
    hub = dict(hub)
    folder = Path(path)
    subfolder = hub.pop("subfolder", None) or ""
    looks_like_hub_id = (
        isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~"))
    )
    if not folder.exists() and looks_like_hub_id:
        files = [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, INT8_NAME, FINGERPRINT_NAME]
        wanted = [f"{subfolder}/{file}" if subfolder else file for file in files]
        try:
            folder = Path(snapshot_download(str(path), allow_patterns=wanted, **hub))
        except (OSError, ValueError) as error:  # no network, no such repository, no valid id
            raise CheckpointError(
                f"there is no folder {path}, and the Hugging Face Hub gave no adapter of that "
                f"name ({type(error).__name__})."
            ) from error
    return str(folder / subfolder)


def given_bank(bank: Bank | None) -> Tensor | None:
    """The numbers of a bank that is given as such, as an adapter's folder, or as a Hub id."""
    if bank is None or isinstance(bank, Tensor):
        return bank
    return bank_of_folder(local_folder(bank, {}))


# --- a folder that is to be loaded onto a base model


def checked_config(base: nn.Module, folder: str, is_trainable: bool) -> tuple[VBLoRAConfig, bool]:
    """The config of a stored adapter, once its file is known to fit; whether it has a bank.

    Args:
        base: the base model, adapted already or not. Not changed.
        folder: on this machine.
        is_trainable: whether training is to go on.

    Raises:
        CheckpointError: no adapter there, or one that doesn't fit the model.
        InferenceOnlyError: it is to be trained, but only its top-k weights are stored.
        TargetError: the config names no layers of this model.
    """
    config = folders.read_config(folder)
    tensors = folders.read_tensors(folder)
    formats.check_format(tensors, config, folder)
    if is_trainable and config.save_only_topk_weights:
        raise InferenceOnlyError(
            f"{folder} can't be trained: it stores only the top {config.topk} logits of each "
            "sub-vector (save_only_topk_weights=True). Load it with is_trainable=False, or train "
            "from a file with all logits."
        )
    config = check_fits(base, config, tensors, folder)
    config.inference_mode = not is_trainable
    return config, formats.BANK_KEY in tensors


def check_fits(
    base: nn.Module, config: VBLoRAConfig, tensors: Mapping[str, Tensor], where: str
) -> VBLoRAConfig:
    """Raise unless these tensors are what a config stores for this base model.

    Args:
        base: adapted already or not, or on the meta device. Not changed.
        config: of the adapter.
        tensors: of its file, in either format; the bank may be missing.
        where: names the file in the message.

    Returns:
        The config with what the model fills in, for inference.

    Raises:
        CheckpointError, TargetError: as `checked_config` does.
    """
    config = copy.copy(config)
    config.inference_mode = True  # a stored adapter: names that match nothing are dropped
    config, targets = resolve(base, config)
    beside = beside_base(base, config, targets)
    _check(tensors, config, features(targets), beside, where)
    return config


def _check(
    tensors: Mapping[str, Tensor],
    config: VBLoRAConfig,
    sizes: Mapping[str, tuple[int, int]],
    beside: Beside,
    where: str,
) -> None:
    """Raise `CheckpointError` unless these tensors are what a config stores for such a model."""
    known = {key: tensor for key, tensor in tensors.items() if key not in beside.copies}
    others = beside.embeddings | beside.trained
    formats.check_tensors(known, config, sizes, others, beside.trained.keys(), where)
    beside.check(known, where)


# --- tensors that are to be put into an adapter that is there


def checked_state_dict(
    model: nn.Module, config: VBLoRAConfig, adapter_name: str, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file, with all logits, once they are known to fit an adapter of a model.

    Args:
        model: a PeftModel, or a model that PEFT injected adapted layers into.
        config: of the adapter.
        adapter_name: which adapter.
        state_dict: of the file, in either format.

    Returns:
        They in the format with all logits; without the bank if that is shared.

    Raises:
        CheckpointError: the tensors don't fit.
    """
    layers = adapted_layers(model, adapter_name)
    where = f"the file of {adapter_name!r}"
    beside = beside_adapted(model, config, layers, adapter_name)
    stored = {_stored_key(key, adapter_name): tensor for key, tensor in state_dict.items()}
    _check(stored, config, features(layers), beside, where)
    if not config.save_only_topk_weights:
        formats.check_format(state_dict, config, where)
    # The other way round it passes: HF Trainer loads its checkpoints, which hold all logits,
    # into an adapter that is to be stored in the top-k format in the end.
    banks = next(iter(layers.values())).vblora_vector_bank
    _check_bank(banks, adapter_name, state_dict, where)
    loaded = {
        key: tensor
        for key, tensor in state_dict.items()
        if _stored_key(key, adapter_name) not in beside.unloaded()
    }
    full = formats.unpacked(loaded, config.num_vectors)
    if banks.is_shared(adapter_name):
        full.pop(formats.BANK_KEY, None)  # the very same is there, for other adapters too
    return full


def _stored_key(key: str, adapter_name: str) -> str:
    """The key in a file, of one that PEFT has begun to fit to the model.

    It has put the adapter's name into the keys of modules_to_save by then.
    """
    return key.replace(f".modules_to_save.{adapter_name}.", ".")


def _check_bank(
    banks: VectorBanks, adapter_name: str, state_dict: Mapping[str, Tensor], where: str
) -> None:
    """A file may lack the bank, or hold another one, only where that does no harm.

    Raises:
        CheckpointError: the adapter would be left with a random bank, or a load into one adapter
            would change others.
    """
    bank = state_dict.get(formats.BANK_KEY)
    if bank is None and adapter_name not in banks.fingerprints:
        raise CheckpointError(
            f"{where} doesn't fit this model: {formats.BANK_KEY} is missing. If the adapter "
            "was trained on the bank of another, load it with vblora_lab.from_pretrained(model, "
            "folder, bank=...)."
        )
    if bank is not None and banks.is_shared(adapter_name):
        held = banks[adapter_name]
        if not torch.equal(bank.to(held.device, held.dtype), held):
            raise CheckpointError(
                f"{where} has another bank than the one that {adapter_name!r} shares with other "
                "adapters of this model, and would change them too. Load it under another name."
            )
