"""A folder with a stored adapter: read and checked, whatever may be wrong with it.

Its weights are in PEFT's file, or in one of 8 bits (see `eight_bits`), which is read as PEFT's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vblora_lab.errors import CheckpointError, ConfigError
from vblora_lab.files import whole_file
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.eight_bits import INT8_NAME, from_eight_bits


def read_fields(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the adapter_config.json of a local folder, of whatever PEFT method.

    Raises:
        CheckpointError: no such folder, no config in it, or not one of a PEFT adapter.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds it.")
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}.")
    if not path.is_file():
        inner = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_NAME}"))
        hint = f" Adapters are in its folders {', '.join(inner)}." if inner else ""
        raise CheckpointError(f"{folder} is not an adapter: it has no {CONFIG_NAME}.{hint}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: bytes that aren't text, too
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(fields, dict) or "peft_type" not in fields:
        raise CheckpointError(f"{path} is not a PEFT adapter config: it has no peft_type.")
    fields.pop("runtime_config", None)
    return fields


def read_config(folder: str | os.PathLike[str]) -> VBLoRAConfig:
    """Read and check the adapter_config.json of a local folder.

    Raises:
        CheckpointError: no such folder, no config in it, or not one of a VB-LoRA adapter.
    """
    fields = read_fields(folder)
    try:
        return VBLoRAConfig.from_peft_type(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{Path(folder) / CONFIG_NAME}: {error}") from error


def read_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors in an adapter folder, by PEFT's keys; those of 8 bits in float32.

    Raises:
        CheckpointError: there is no safetensors file, or it is damaged, or it goes while it is
            read. Pickled weights are never read, since a pickle can run any code.
    """
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    pickled = Path(folder) / WEIGHTS_NAME
    if path.is_file():
        with _readable(path):
            return load_file(path)
    if is_in_eight_bits(folder):
        path = Path(folder) / INT8_NAME
        return from_eight_bits(*read_coded(path), where=str(path))
    if pickled.is_file():
        raise CheckpointError(
            f"{pickled} is a pickle, which can run any code when it is read. If you trust it, "
            f"convert it once: safetensors.torch.save_file(torch.load({str(pickled)!r}, "
            f"weights_only=True), {str(path)!r})."
        )
    raise CheckpointError(
        f"{folder} has a config but no weights: {SAFETENSORS_WEIGHTS_NAME} is missing. (Pickled "
        f"weights, {WEIGHTS_NAME}, are neither downloaded nor read.)"
    )


def is_in_eight_bits(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has weights in 8 bits, and none that PEFT reads."""
    here = Path(folder)
    return (here / INT8_NAME).is_file() and not (here / SAFETENSORS_WEIGHTS_NAME).is_file()


def read_coded(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file as they are, and what its header says beside them.

    Raises `CheckpointError` for a damaged file.
    """
    with _readable(path), safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in sorted(file.keys())}, file.metadata() or {}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); copy it again."
        ) from error
    except RuntimeError as error:  # PyTorch opens it once more, by its path, to map it
        raise CheckpointError(
            f"{path} was there and could not be mapped ({error}): it was deleted or replaced "
            "meanwhile, or there is no memory for it. Read it again."
        ) from error


@contextmanager
def as_peft_stores(folder: str | os.PathLike[str], subfolder: str = "") -> Iterator[str]:
    """A folder that PEFT can load from: the same, or one for a while if this is in 8 bits.

    Args:
        folder: of an adapter, or whatever else PEFT may be given in its place.
        subfolder: of the folder, in which the adapter is.
    """
    own = Path(folder) / subfolder
    if not is_in_eight_bits(own):
        yield os.fspath(folder)
        return
    tensors = read_tensors(own)
    with tempfile.TemporaryDirectory() as scratch:
        inner = Path(scratch) / subfolder
        inner.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(own / CONFIG_NAME, inner / CONFIG_NAME)
        rewrite(inner / SAFETENSORS_WEIGHTS_NAME, tensors)
        yield scratch


def read_to_rewrite(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, apart from it: a mapped file can't always be replaced."""
    return load(path.read_bytes())


def rewrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put other tensors into a safetensors file; an interruption leaves the old file."""
    with whole_file(path) as new:
        save_file({k: t.contiguous() for k, t in tensors.items()}, new, metadata={"format": "pt"})


def is_training_checkpoint(folder: Path, adapter_name: str) -> bool:
    """Whether a folder is where HF Trainer keeps an adapter to resume from: checkpoint-<step>.

    PEFT puts an adapter of another name than "default" into a folder of that name in it.
    """
    folder = Path(folder).absolute()
    if adapter_name != "default":
        folder = folder.parent
    return re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", folder.name) is not None
