"""From a file to a model: what is found, and what is checked before a number of it is used.

`checked_config` is for a folder that is about to be loaded onto a base model (`from_pretrained`),
`checked_state_dict` for tensors that PEFT is about to put into an adapter that is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
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
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.modules import modules_to_save
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
        files = [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, FINGERPRINT_NAME]
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
    config.inference_mode = True  # a stored adapter: names that match nothing are dropped
    config, targets = resolve(base, config)
    config.inference_mode = not is_trainable
    shapes = _other_shapes_of_base(base, config, targets)
    formats.check_tensors(tensors, config, features(targets), shapes, where=folder)
    return config, formats.BANK_KEY in tensors


def _other_shapes_of_base(
    base: nn.Module, config: VBLoRAConfig, targets: Iterable[str]
) -> dict[str, formats.Shape]:
    """What PEFT could store of a base model beside bank and logits, by the keys of its files.

    The keys are those of a model that carries this adapter alone.
    """
    others = {
        formats.LAYER_PREFIX + re.sub(r"\.(base_layer|original_module)\.", ".", name): tensor.shape
        for name, tensor in base.state_dict().items()
    }
    for name in targets:
        prefix = f"{formats.LAYER_PREFIX}{name}."
        # Of an adapted output head, PEFT stores the weight too.
        for part in ("weight", "bias"):
            if prefix + part in others:
                others[f"{prefix}base_layer.{part}"] = others.pop(prefix + part)
    for name in modules_to_save(base, config):
        prefix = f"{formats.LAYER_PREFIX}{name}."
        # With bias="all", PEFT stores the biases of such a module three times.
        for key in [key for key in others if key.startswith(prefix) and key.endswith("bias")]:
            for part in ("modules_to_save", "original_module"):
                others[f"{prefix}{part}.{key.removeprefix(prefix)}"] = others[key]
    return {key: tuple(shape) for key, shape in others.items()}


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
    others = _other_shapes_of_adapted(model, adapter_name)
    formats.check_tensors(state_dict, config, features(layers), others, where)
    if not config.save_only_topk_weights:
        formats.check_format(state_dict, config, where)
    # The other way round it passes: HF Trainer loads its checkpoints, which hold all logits,
    # into an adapter that is to be stored in the top-k format in the end.
    banks = next(iter(layers.values())).vblora_vector_bank
    _check_bank(banks, adapter_name, state_dict, where)
    full = formats.unpacked(state_dict, config.num_vectors)
    if banks.is_shared(adapter_name):
        full.pop(formats.BANK_KEY, None)  # the very same is there, for other adapters too
    return full


def _other_shapes_of_adapted(model: nn.Module, adapter_name: str) -> dict[str, formats.Shape]:
    """Of all that a model holds, by the keys of PEFT's files."""
    shapes = {
        # A model that PEFT injected layers into without wrapping it has no prefix; files have.
        key if key.startswith("base_model.") else formats.LAYER_PREFIX + key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
    }
    copied = f".modules_to_save.{adapter_name}."  # with bias="all", their biases come twice
    again = [key for key in shapes if copied in key]
    return shapes | {key.replace(copied, ".modules_to_save."): shapes[key] for key in again}


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
