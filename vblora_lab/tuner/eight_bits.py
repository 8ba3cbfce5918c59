"""An adapter's file in 8 bits, `vblora_int8.safetensors`, which this package alone reads.

    bank            (num_vectors, vector_length) int8, unless the adapter uses the bank of another
    bank_scales     (blocks,) float16
    indices         (sub_vectors, topk), smallest integer type
    weights         (sub_vectors, topk - 1) int8
    weights_scales  (blocks,) float16

PEFT would take the codes for numbers, so that the file has another name than PEFT's, where it finds
no weights and says so. The choices of all layers lie behind each other, in the order of the layers'
names, A before B; the header says which layers, with r and how many tiles A and B have:

    tiles           {"model.decoder.layers.0.self_attn.q_proj": [r, in_tiles, out_tiles], ...}

This takes one entry for each layer where PEFT's format has four tensors, whose names, shapes and
places are most of a small file. Biases and whole modules are kept beside them, as PEFT stores them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vblora_lab.errors import CheckpointError
from vblora_lab.tuner import precision
from vblora_lab.tuner.formats import BANK_KEY, INDICES, LAYER_PREFIX, LOGITS, WEIGHTS, within_one

INT8_NAME = "vblora_int8.safetensors"
SCALES = "_scales"
TILES = "tiles"  # in the header
READ_BY = "vblora_lab.from_pretrained; `vblora-lab save-adapter` makes PEFT's file of it"
BANK_IN_EIGHT_BITS = {"bank", "bank" + SCALES}

Tiles = dict[str, tuple[int, int, int]]


def to_eight_bits(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file in 8 bits, and what its header says beside them.

    Args:
        tensors: of an adapter in PEFT's top-k format; the bank may be missing.

    Raises:
        CheckpointError: a number is beyond what 8 bits with a scale in float16 hold.
    """
    tiles = _tiles_of(tensors)
    stems = _stems(tiles)
    result = {k: t for k, t in tensors.items() if not k.endswith((INDICES, WEIGHTS))}
    coded = {"weights": torch.cat([tensors[stem + WEIGHTS].flatten(0, 1) for stem in stems])}
    if BANK_KEY in result:
        coded["bank"] = result.pop(BANK_KEY)
    for name, numbers in coded.items():
        precision.check_range(numbers, precision.INT8, name)
        result[name], result[name + SCALES] = precision.encoded(numbers)
    result["indices"] = torch.cat([tensors[stem + INDICES].flatten(0, 1) for stem in stems])
    return result, {TILES: json.dumps(tiles, separators=(",", ":")), "how to read it": READ_BY}


def from_eight_bits(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], where: str
) -> dict[str, Tensor]:
    """The inverse: an adapter in PEFT's top-k format, its numbers in float32.

    Args:
        tensors: of a file in 8 bits.
        header: what the file says beside them.
        where: names the file in a message.

    Raises:
        CheckpointError: header and tensors are not those of such a file.
    """
    result = dict(tensors)
    tiles = _read_tiles(header, where)
    indices, weights = result.pop("indices", None), _decoded(result, "weights", where)
    bank = _decoded(result, "bank", where) if "bank" in result else None
    shapes = [shape for r, ins, outs in tiles.values() for shape in ((r, ins), (outs, r))]
    rows = [math.prod(shape) for shape in shapes]
    if indices is None or {indices.dim(), weights.dim()} != {2}:
        raise CheckpointError(f"{where} is damaged: indices or weights are no matrix.")
    if {len(indices), len(weights)} != {sum(rows)}:
        raise CheckpointError(
            f"{where} is damaged: it holds {len(indices)} rows of indices, {len(weights)} of "
            f"weights, and its header names {sum(rows)} sub-vectors."
        )
    # Rounding to 8 bits can bring a sum to well above 1; softmax would bring it back to 1.
    weights = within_one(weights / weights.sum(1, keepdim=True).clamp_min(1))
    parts = indices.split(rows), weights.split(rows)
    for stem, shape, its_indices, its_weights in zip(_stems(tiles), shapes, *parts, strict=True):
        result[stem + INDICES] = its_indices.view(*shape, indices.shape[1])
        result[stem + WEIGHTS] = its_weights.view(*shape, weights.shape[1])
    return result if bank is None else {**result, BANK_KEY: bank}


def _decoded(tensors: dict[str, Tensor], name: str, where: str) -> Tensor:
    """Take codes and their scales out, and say what they stand for."""
    codes, scales = tensors.pop(name, None), tensors.pop(name + SCALES, None)
    if codes is None or scales is None:
        raise CheckpointError(f"{where} is damaged: {name} or {name}{SCALES} is missing.")
    blocks = (math.ceil(codes.numel() / precision.BLOCK),)
    if (codes.dtype, scales.dtype) != (torch.int8, torch.float16) or scales.shape != blocks:
        raise CheckpointError(
            f"{where} is damaged: {name} must be int8 with a scale in float16 for each "
            f"{precision.BLOCK} numbers."
        )
    return precision.decoded(codes, scales)


def _tiles_of(tensors: Mapping[str, Tensor]) -> Tiles:
    """r and the tiles of A and B of each layer, in the order of the layers' names."""
    found: Tiles = {}
    first, second = (f".{logits}{INDICES}" for logits in LOGITS)
    for key in sorted(tensors):
        if key.endswith(first):
            stem = key.removesuffix(first)
            r, ins = tensors[key].shape[:2]
            found[stem.removeprefix(LAYER_PREFIX)] = r, ins, len(tensors[stem + second])
    return found


def _read_tiles(header: Mapping[str, str], where: str) -> Tiles:
    try:
        found = {name: tuple(sizes) for name, sizes in json.loads(header[TILES]).items()}
        known = all(
            len(sizes) == 3 and all(type(size) is int and size > 0 for size in sizes)
            for sizes in found.values()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        known = False
    if not known:
        raise CheckpointError(f"{where} is damaged: its header doesn't say which layers it is for.")
    return found


def _stems(tiles: Tiles) -> list[str]:
    return [f"{LAYER_PREFIX}{name}.{logits}" for name in tiles for logits in LOGITS]
