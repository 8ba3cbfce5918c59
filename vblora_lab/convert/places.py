"""Where a converted adapter is written: a folder in which nothing else would be lost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from peft import PeftConfig, PeftType
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vblora_lab.errors import CheckpointError
from vblora_lab.files import whole_folder
from vblora_lab.tuner import folders
from vblora_lab.tuner.banks import FINGERPRINT_NAME, write_fingerprint
from vblora_lab.tuner.eight_bits import INT8_NAME

MADE_OF = "vblora_sha256"  # the digest of what an adapter was converted from, in the file's header


def is_made_of(folder: Path, digest: str) -> bool:
    """Whether a folder holds a whole conversion of the adapter with this digest."""
    try:
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            return (file.metadata() or {}).get(MADE_OF) == digest
    except (OSError, SafetensorError):
        return False


def free_folder(path: str | os.PathLike[str], peft_type: PeftType) -> Path:
    """The folder to write to, if nothing would be lost: new, empty, or of the same kind."""
    folder = Path(os.path.realpath(path))
    if folder.is_dir():
        found = {file.name for file in folder.iterdir()}
        own = {INT8_NAME, FINGERPRINT_NAME} if peft_type == PeftType.VBLORA else set()
        strangers = found - {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, *own}
        if strangers:
            raise CheckpointError(
                f"{path} holds other files ({', '.join(sorted(strangers)[:3])}); give a new folder."
            )
        if CONFIG_NAME in found:
            kind = folders.read_fields(folder)["peft_type"]
            if kind != peft_type:
                raise CheckpointError(f"{path} holds a {kind} adapter; give a new folder.")
    elif os.path.lexists(folder):
        raise CheckpointError(f"{path} is a file; give a folder.")
    above = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "can't be written to" if above.is_dir() else "is a file"
        raise CheckpointError(f"{path} can't be made, since {above} {why}.")
    return folder


def write_adapter(
    folder: Path,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str] | None = None,
    *,
    name: str = SAFETENSORS_WEIGHTS_NAME,
    bank: str | None = None,
) -> None:
    """Write an adapter's folder completely or not at all.

    Args:
        folder: to write.
        config: of the adapter.
        tensors: of its file.
        header: what the file says beside them.
        name: of the file.
        bank: the fingerprint of the bank that the adapter needs, if it is stored without.
    """
    metadata = {"format": "pt", **(header or {})}
    with whole_folder(folder) as scratch:
        # safetensors takes no tensors that share memory, as tied weights do.
        separate = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
        separate = {key: tensor.contiguous() for key, tensor in separate.items()}
        save_file(separate, scratch / name, metadata=metadata)
        if bank is not None:
            write_fingerprint(scratch, bank)
        config.save_pretrained(str(scratch))
