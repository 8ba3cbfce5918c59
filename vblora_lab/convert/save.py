"""VB-LoRA -> VB-LoRA in another precision: float16, which PEFT loads, 8 bits, and back to float32.

PEFT loads no top-k weights but in float32, so those stay as they are in float16. 8 bits have a file
of their own (see `tuner.eight_bits`), which `from_pretrained`, `export_lora` and stores read here;
PEFT finds no weights in such a folder, and says so.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from peft import PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from vblora_lab.convert.adapters import Source, check_stored, peft_model, subfolder
from vblora_lab.convert.places import free_folder, write_adapter
from vblora_lab.errors import ConfigError
from vblora_lab.tuner import folders, formats
from vblora_lab.tuner.banks import read_fingerprint
from vblora_lab.tuner.config import as_vblora_config
from vblora_lab.tuner.eight_bits import INT8_NAME, to_eight_bits
from vblora_lab.tuner.peft import using
from vblora_lab.tuner.precision import FLOAT32, INT8, check_precision


def save_adapter(
    source: Source,
    path: str | os.PathLike[str],
    save_in: str = FLOAT32,
    adapter_name: str = "default",
    *,
    only_topk: bool = False,
) -> Path:
    """Store a VB-LoRA adapter in a precision of choice.

    "float16" halves the bank, and the logits if all are stored; top-k weights stay in float32. It
    makes PEFT's file. "int8" takes the top-k format alone: bank and weights are whole numbers with
    a float16 scale for each 64 of them (see `tuner.precision`), in a file that PEFT can't read.
    "float32" makes PEFT's file of either. A bank that the adapter only uses isn't stored, as by
    `PeftModel.save_pretrained`; the fingerprint names that bank as it was, so an adapter whose bank
    is to be shared is best rounded before others are trained on it.

    Args:
        source: a PeftModel with a VB-LoRA adapter, this package's or PEFT's own; or the folder of a
            stored one, in any precision.
        path: the folder to write. One that holds a VB-LoRA adapter and nothing else is replaced; it
            is written completely or not at all.
        save_in: "float32", "float16" or "int8".
        adapter_name: which adapter of the model; of a folder, "default" is the folder itself and
            any other name a folder in it, as PEFT stores them.
        only_topk: store the top-k weights alone, even if the config says to keep all logits.

    Returns:
        The path. `from_pretrained` loads it, with what was rounded in float32.

    Raises:
        ConfigError: save_in is none of these, or "int8" for an adapter that keeps all logits; or
            the model has no such adapter.
        CheckpointError: source is no VB-LoRA adapter, or damaged; it has numbers that the precision
            can't hold; or path is a file or holds something else.
    """
    check_precision(save_in)
    folder = free_folder(path, PeftType.VBLORA)
    if not isinstance(source, nn.Module):
        _convert(subfolder(source, adapter_name), folder, save_in, only_topk)
        return Path(path)
    model = peft_model(source, adapter_name)
    config = as_vblora_config(model.peft_config[adapter_name])
    _check_topk(save_in, only_topk or config.save_only_topk_weights)
    with tempfile.TemporaryDirectory() as scratch:
        with using():
            model.save_pretrained(scratch, selected_adapters=[adapter_name])
        _convert(subfolder(scratch, adapter_name), folder, save_in, only_topk)
    return Path(path)


def _convert(stored: Path, folder: Path, save_in: str, only_topk: bool) -> None:
    config, tensors = folders.read_config(stored), folders.read_tensors(stored)
    formats.check_format(tensors, config, str(stored))
    check_stored(config, tensors, str(stored))
    if only_topk and not config.save_only_topk_weights:
        tensors = formats.packed(tensors, config.topk)
        config.save_only_topk_weights = True
    _check_topk(save_in, config.save_only_topk_weights)
    if save_in == INT8:
        name, (tensors, header) = INT8_NAME, to_eight_bits(tensors)
    else:
        name, header = SAFETENSORS_WEIGHTS_NAME, {}
        tensors = formats.in_dtype(tensors, save_in, config.topk)
    bank = read_fingerprint(stored)
    write_adapter(folder, config, tensors, header, name=name, bank=bank)


def _check_topk(save_in: str, only_topk: bool) -> None:
    if save_in == INT8 and not only_topk:
        raise ConfigError(
            "save_in='int8': is for top-k weights, and this adapter keeps all logits "
            "(save_only_topk_weights=False), so that training can go on from it. Give "
            "only_topk=True to store what using it takes, or save_in='float16'.",
            field="save_in",
            suggestion="float16",
        )
