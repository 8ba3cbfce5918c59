"""From a model to a file: the tensors that are stored, and how a stored folder is completed.

PEFT asks the tuner which tensors of the model's state dict to store (`logits_and_bank`), writes
them, and then calls `save_pretrained` of the config, which lets the model finish the folder
(`complete_folder`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from vblora_lab.tuner import folders, formats
from vblora_lab.tuner.adapted import features
from vblora_lab.tuner.banks import FINGERPRINT_NAME, VectorBanks, write_fingerprint
from vblora_lab.tuner.base_names import with_public_base
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.eight_bits import INT8_NAME
from vblora_lab.tuner.layer import VBLoRALayer


def full_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """All logits of an adapter and its bank, by the keys of PEFT's files, whatever is to be stored.

    Args:
        model: the PeftModel that holds the adapter.
        adapter_name: which adapter.

    Returns:
        The tensors of the model themselves, on their devices and in their dtypes: the logits of A
        (r, in_tiles, num_vectors) and of B (out_tiles, r, num_vectors) of each adapted layer, and
        the bank (num_vectors, vector_length), also if the adapter shares that of another.
    """
    tensors = logits_and_bank(model.state_dict(), adapter_name)
    return {key.removesuffix(f".{adapter_name}"): tensor for key, tensor in tensors.items()}


def logits_and_bank(state_dict: Mapping[str, Tensor], adapter_name: str) -> dict[str, Tensor]:
    """Those of one adapter out of a model's state dict, under their names there.

    Raises:
        KeyError: the adapter has no bank there.
    """
    endings = tuple(f".{name}.{adapter_name}" for name in formats.LOGITS)
    result = {key: tensor for key, tensor in state_dict.items() if key.endswith(endings)}
    # The bank is in the state dict once per layer; the file has it once, under the model.
    bank = f"{formats.BANK_KEY}.{adapter_name}"
    result[bank] = state_dict[bank]
    return result


def complete_folder(
    folder: Path,
    adapter_name: str,
    config: VBLoRAConfig,
    layers: Mapping[str, VBLoRALayer],
    banks: VectorBanks,
) -> VBLoRAConfig:
    """Bring a folder in which PEFT just stored an adapter into its final form.

    A checkpoint of HF Trainer is for going on: it keeps all logits and the bank, even with
    save_only_topk_weights and a shared bank. Any other folder is an export, and is compact: a
    bank that the adapter only uses is left out, and a small file says which it was.

    Args:
        folder: has the adapter's weights, in PEFT's format.
        adapter_name: which adapter.
        config: of the adapter, as the model holds it. Not changed.
        layers: those that carry the adapter, by name.
        banks: of the model.

    Returns:
        The config to be written there.
    """
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():  # nothing is stored
        return config
    config = with_public_base(config, folder, adapter_name)
    going_on = folders.is_training_checkpoint(folder, adapter_name)
    for of_before in (FINGERPRINT_NAME, INT8_NAME):  # of what was stored here before
        (folder / of_before).unlink(missing_ok=True)
    if (
        going_on
        and config.save_only_topk_weights
        and _put_back_logits(weights, adapter_name, config, layers)
    ):
        config = copy.copy(config)
        config.save_only_topk_weights = False
    if not going_on and adapter_name in banks.fingerprints:
        tensors = folders.read_to_rewrite(weights)
        tensors.pop(formats.BANK_KEY, None)
        folders.rewrite(weights, tensors)
        write_fingerprint(folder, banks.fingerprint_of(adapter_name))
    return config


def _put_back_logits(
    weights: Path, adapter_name: str, config: VBLoRAConfig, layers: Mapping[str, VBLoRALayer]
) -> bool:
    """Replace the top-k format in a file by all logits, or say that it can't be done."""
    if not all(layer.logits_are_complete[adapter_name] for layer in layers.values()):
        return False  # there are no more than these
    logits = {
        f"{formats.LAYER_PREFIX}{layer_name}.{name}": getattr(layer, name)[adapter_name].data
        for layer_name, layer in layers.items()
        for name in formats.LOGITS
    }
    stored = folders.read_to_rewrite(weights)
    shapes = formats.expected_shapes(config, features(layers), only_topk=False)
    whole = all(type(t) is Tensor and t.shape == shapes[key] for key, t in logits.items())
    if not whole or not _is_top_k_of(stored, logits, config.topk):
        warnings.warn(
            f"{weights} keeps only the top {config.topk} logits, since this process doesn't "
            "have them all; training can't go on from there. Set save_only_topk_weights=False "
            "while training.",
            stacklevel=2,
        )
        return False
    suffixes = (formats.INDICES, formats.WEIGHTS)
    rest = {key: tensor for key, tensor in stored.items() if not key.endswith(suffixes)}
    folders.rewrite(weights, {**rest, **logits})
    return True


def _is_top_k_of(stored: Mapping[str, Tensor], logits: Mapping[str, Tensor], topk: int) -> bool:
    """Whether a file was made of these logits.

    Not so where a process holds but a part of each parameter (FSDP, ZeRO-3), or where somebody
    saved another state dict.
    """
    return all(
        key in stored and torch.equal(stored[key], tensor.to("cpu"))
        for key, tensor in formats.packed(logits, topk).items()
    )
