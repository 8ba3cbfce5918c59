"""What a VB-LoRA adapter is on disk: two formats, key for key PEFT's, and their sizes in bytes.

    base_model.vblora_vector_bank                     (num_vectors, vector_length)

and per adapted layer, with N standing for A (r, in_tiles) or B (out_tiles, r), either all logits

    base_model.model.<layer>.vblora_logits_N               (*N, num_vectors)

or, with save_only_topk_weights, only what the choice came to:

    base_model.model.<layer>.vblora_logits_N_topk_indices  (*N, topk), smallest integer type
    base_model.model.<layer>.vblora_logits_N_topk_weights  (*N, topk - 1)

The last weight isn't stored, since the weights of a sub-vector sum to 1. Logits are rebuilt as the
logarithm of the weights, and -inf where nothing was stored: softmax gives the weights back, but
training can't go on from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vblora_lab.admixture import choose
from vblora_lab.config import VBLoRAConfig
from vblora_lab.errors import CheckpointError, ConfigError

BANK_KEY = "base_model.vblora_vector_bank"
LAYER_PREFIX = "base_model.model."
LOGITS = ("vblora_logits_A", "vblora_logits_B")
INDICES, WEIGHTS = "_topk_indices", "_topk_weights"
FLOAT32_BYTES = 4

Shape = tuple[int, ...]


# --- one sub-vector's choice <-> its logits


def index_dtype(num_vectors: int) -> torch.dtype:
    """The integer type in which PEFT stores indices into a bank of this many vectors."""
    if num_vectors < 2**8:
        return torch.uint8
    return torch.int16 if num_vectors < 2**15 else torch.int32


def pack(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Logits (..., num_vectors) -> indices (..., topk), and weights (..., topk - 1)."""
    indices, weights = choose(logits, topk)
    return indices.to(index_dtype(logits.shape[-1])), weights[..., :-1].contiguous()


def unpack(indices: Tensor, weights: Tensor, num_vectors: int) -> Tensor:
    """The inverse of `pack`, up to what it left out: -inf for each vector that wasn't chosen.

    Raises:
        CheckpointError: an index lies outside the bank.
    """
    indices = indices.long()
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < num_vectors:
        raise CheckpointError(
            f"stored indices run from {int(indices.min())} to {int(indices.max())}, but the bank "
            f"has num_vectors={num_vectors} vectors (0 to {num_vectors - 1})."
        )
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    # Rounding can leave a last weight of zero or just below. Its logarithm would be -inf or NaN,
    # and the choice lost; the smallest normal number keeps it, at no weight worth the name.
    logits = torch.log(weights.clamp_min(torch.finfo(weights.dtype).tiny))
    empty = logits.new_full((*logits.shape[:-1], num_vectors), -torch.inf)
    return empty.scatter(-1, indices, logits)


# --- the state dict of an adapter


def packed(state_dict: Mapping[str, Tensor], topk: int) -> dict[str, Tensor]:
    """A full-logits state dict in the top-k format; other entries pass through."""
    result: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if any(name in key for name in LOGITS):
            result[key + INDICES], result[key + WEIGHTS] = pack(tensor, topk)
        else:
            result[key] = tensor
    return result


def unpacked(state_dict: Mapping[str, Tensor], num_vectors: int) -> dict[str, Tensor]:
    """A state dict of either format in the full-logits format."""
    result = {k: v for k, v in state_dict.items() if not k.endswith((INDICES, WEIGHTS))}
    for key in state_dict:
        if key.endswith(INDICES):
            stem = key.removesuffix(INDICES)
            result[stem] = unpack(state_dict[key], state_dict[stem + WEIGHTS], num_vectors)
    return result


def expected_shapes(
    config: VBLoRAConfig, features: Mapping[str, tuple[int, int]], only_topk: bool
) -> dict[str, Shape]:
    """The keys and shapes of an adapter's bank and logits.

    Args:
        config: of the adapter.
        features: (in_features, out_features) of each adapted layer, by full name.
        only_topk: in the top-k format rather than with all logits.
    """
    shapes: dict[str, Shape] = {BANK_KEY: (config.num_vectors, config.vector_length)}
    for name, (in_features, out_features) in features.items():
        tiles_A = (config.r, in_features // config.vector_length)
        tiles_B = (out_features // config.vector_length, config.r)
        for logits, tiles in zip(LOGITS, (tiles_A, tiles_B), strict=True):
            key = f"{LAYER_PREFIX}{name}.{logits}"
            if only_topk:
                shapes[key + INDICES] = (*tiles, config.topk)
                shapes[key + WEIGHTS] = (*tiles, config.topk - 1)
            else:
                shapes[key] = (*tiles, config.num_vectors)
    return shapes


def check_shapes(
    found: Mapping[str, Shape],
    config: VBLoRAConfig,
    features: Mapping[str, tuple[int, int]],
    where: str,
) -> None:
    """Compare the bank and logits of a file with what a model expects; ignore other entries.

    Args:
        found: shapes by key, in either format.
        config: of the adapter.
        features: (in_features, out_features) of each adapted layer, by full name.
        where: names the file in the message.

    Raises:
        CheckpointError: keys are missing, unexpected, or of another shape.
    """
    expected = expected_shapes(config, features, only_topk=is_topk_format(found))
    ours = {key: tuple(shape) for key, shape in found.items() if "vblora_" in key}
    problems = [f"{key} is missing" for key in expected.keys() - ours.keys()]
    problems += [f"{key} is not in this model" for key in ours.keys() - expected.keys()]
    problems += [
        f"{key} has shape {ours[key]}, this model needs {expected[key]}"
        for key in ours.keys() & expected.keys()
        if ours[key] != expected[key]
    ]
    if problems:
        problems.sort()
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{where} doesn't fit this model: {'; '.join(problems[:4])}{more}. Was it made for "
            "another base model, or with another config?"
        )


def is_topk_format(keys: Iterable[str]) -> bool:
    """Whether these are the keys of the top-k format."""
    return any(key.endswith(INDICES) for key in keys)


# --- a folder with an adapter


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
    except ValueError as error:  # covers both bad JSON and bytes that aren't text
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


def read_shapes(folder: str | os.PathLike[str]) -> dict[str, Shape]:
    """Keys and shapes of the tensors in an adapter folder; safetensors files aren't read in full.

    Raises:
        CheckpointError: there is no weights file, or it is damaged.
    """
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    pickled = Path(folder) / WEIGHTS_NAME
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is damaged or no safetensors file ({error}); copy it again."
            ) from error
    if not pickled.is_file():
        raise CheckpointError(
            f"{folder} has a config but no weights: {SAFETENSORS_WEIGHTS_NAME} is missing."
        )
    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the broken bytes lead it to
        raise CheckpointError(f"{pickled} is damaged or no torch file ({error}).") from error
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


# --- sizes


def count_sub_vectors(features: Iterable[tuple[int, int]], r: int, vector_length: int) -> int:
    """How many sub-vectors the A and B of layers with these (in, out) sizes are cut into."""
    return sum(r * (size_in + size_out) // vector_length for size_in, size_out in features)


def vblora_stored_bytes(
    sub_vectors: int,
    num_vectors: int,
    vector_length: int,
    topk: int,
    only_topk: bool,
    float_bytes: int = FLOAT32_BYTES,
) -> int:
    """Bytes of the tensors of a stored VB-LoRA adapter: the bank, and logits in either format.

    Args:
        sub_vectors: how many the adapter has in all (`count_sub_vectors`).
        num_vectors, vector_length: shape of the bank.
        topk: vectors mixed into a sub-vector.
        only_topk: the format of save_only_topk_weights.
        float_bytes: size of one number of the adapter, 4 for float32.
    """
    bank = num_vectors * vector_length * float_bytes
    if only_topk:
        per_sub_vector = topk * index_dtype(num_vectors).itemsize + (topk - 1) * float_bytes
    else:
        per_sub_vector = num_vectors * float_bytes
    return bank + sub_vectors * per_sub_vector


def lora_stored_bytes(features: Iterable[tuple[int, int]], r: int) -> int:
    """Bytes of the tensors of a PEFT LoRA adapter of rank r in float32: A (r, in), B (out, r)."""
    return sum(r * (size_in + size_out) * FLOAT32_BYTES for size_in, size_out in features)
