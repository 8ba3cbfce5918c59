"""VB-LoRA -> LoRA: the A and B that bank and logits make, as a file. No base model is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, PeftType
from torch import Tensor, nn

from vblora_lab.convert.adapters import (
    LORA_A,
    LORA_B,
    Source,
    folder_digest,
    is_vblora_key,
    read_folder,
    read_model,
    shared_fields,
    subfolder,
    vblora_factors,
)
from vblora_lab.convert.places import MADE_OF, free_folder, write_adapter
from vblora_lab.errors import ConfigError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.formats import LAYER_PREFIX
from vblora_lab.tuner.loading import Bank

MODEL_HAS_ITS_BANK = "bank: a model has the bank of its adapter; leave bank= out."


def export_lora(
    source: Source,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    bank: Bank | None = None,
) -> Path:
    """Write a VB-LoRA adapter as a LoRA adapter with the same update, for engines that serve LoRA.

    A and B are mixed from bank and logits in float32 or finer and written as they are, with
    lora_alpha = r, so that LoRA's scaling is 1. Biases and modules_to_save come along.
    Stock PEFT loads the folder as a LoRA adapter for the same modules.

    (peft.convert_to_lora also makes LoRA of VB-LoRA. It takes each layer's B A apart by a singular
    value decomposition, for which it needs the model, and refuses trained biases; use it for a rank
    below the adapter's.)

    Args:
        source: a PeftModel with a VB-LoRA adapter, this package's or PEFT's own, merged or not; or
            the folder of a stored adapter of either format, of any precision.
        path: the folder to write. One that holds an earlier export is replaced; it is written
            completely or not at all.
        adapter_name: which adapter of the model; of a folder, "default" is the folder itself and
            any other name a folder in it, as PEFT stores them.
        bank: for a folder that was stored without its bank: the folder or Hub id of an adapter
            that has it, or the tensor (num_vectors, vector_length). It must be the very bank whose
            fingerprint the folder names.

    Returns:
        The path.

    Raises:
        CheckpointError: source is no VB-LoRA adapter, its bank isn't given or is another one, or
            path is a file or holds something else.
        ConfigError: the model has no such adapter, or it is one of another method; or a bank is
            given that isn't needed.
    """
    folder = free_folder(path, PeftType.LORA)
    if isinstance(source, nn.Module):
        if bank is not None:
            raise ConfigError(MODEL_HAS_ITS_BANK)
        write_lora(folder, *read_model(source, adapter_name))
    else:
        stored = subfolder(source, adapter_name)
        write_lora(folder, *read_folder(stored, bank), made_of=folder_digest(stored))
    return Path(path)


def write_lora(
    folder: Path, config: VBLoRAConfig, tensors: Mapping[str, Tensor], made_of: str = ""
) -> None:
    """Write as LoRA what was read of a VB-LoRA adapter, completely or not at all.

    Args:
        folder: to write.
        config: of the VB-LoRA adapter.
        tensors: its bank, its logits in either format, and what is stored beside them.
        made_of: the digest of what it is converted from, if that has one.
    """
    factors = vblora_factors(tensors, config)
    result = {key: tensor for key, tensor in tensors.items() if not is_vblora_key(key)}
    for name, (A, B) in factors.items():
        result[f"{LAYER_PREFIX}{name}{LORA_A}"] = A
        result[f"{LAYER_PREFIX}{name}{LORA_B}"] = B
    lora_config = LoraConfig(
        r=config.r,
        lora_alpha=config.r,
        lora_dropout=config.vblora_dropout,
        bias=config.bias.replace("vblora_only", "lora_only"),  # type: ignore[arg-type]
        **shared_fields(config, factors),
    )
    write_adapter(folder, lora_config, result, {MADE_OF: made_of} if made_of else {})
