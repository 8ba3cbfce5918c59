"""The matrices of many layers in one admixture.

Layer by layer, every pass costs two top-k, two softmax and two weighted sums per adapted layer,
forward and backward. But all logits of an adapter index the same bank, and its layers share one
rank r, so the logits of the whole model can be laid side by side, mixed in one call, and the
result cut into each layer's A and B:

    logits    (r, T, num_vectors)          T: tiles of all layers, A's and B's
    mixed     (r, T * vector_length)       one wide matrix
    A         (r, in_features)             a range of its columns, without a copy
    B_T       (r, out_features)            another; the transpose of B
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vblora_lab.admixture import choose, mix
from vblora_lab.speed import kernels
from vblora_lab.speed.fused import fused_matrices
from vblora_lab.speed.in_graph import cut_in_graph, mixed_in_graph
from vblora_lab.speed.order import Order

SMALL = 2**23  # logits that are laid side by side in plain PyTorch: 32 MiB in float32

PER_CHOICE = 64  # numbers of a row for each that is chosen, see `_choose`


class Matrices(NamedTuple):
    """A (r, in_features) and the transpose of B, (r, out_features).

    There may be rows of zeros at their ends (see `fused.fused_matrices`).
    """

    A: Tensor
    B_T: Tensor


def mix_all(
    logits: Sequence[tuple[Tensor, Tensor]], bank: Tensor, topk: int, dtype: torch.dtype
) -> list[Matrices]:
    """Build the matrices of many layers in one admixture.

    Args:
        logits: per layer, those of A (r, in_tiles, num_vectors) and B (out_tiles, r, num_vectors).
        bank: (num_vectors, vector_length).
        topk: how many bank vectors make a sub-vector.
        dtype: of the result; mixing itself happens in that of the logits.
    """
    usable = kernels.usable([part for pair in logits for part in pair], bank, topk)
    if usable and not torch.compiler.is_compiling():
        ranges = iter(fused_matrices(logits, bank, topk, dtype))
        return list(map(Matrices, ranges, ranges))
    parts = Order(logits)
    if usable:
        mixed = mixed_in_graph(parts, bank, topk, dtype)
    else:
        mixed = _mixed_in_plain_pytorch(parts, bank, topk).to(dtype)
    return [Matrices(*pair) for pair in parts.by_layer(cut_columns(mixed, parts.tiles))]


def cut_columns(mixed: Tensor, tiles: Sequence[int]) -> Sequence[Tensor]:
    """Sub-vectors (r, all tiles, vector_length) as the matrices of which each has some tiles."""
    widths = [each * mixed.shape[2] for each in tiles]
    if torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag:
        return cut_in_graph(mixed.flatten(1), widths)
    return mixed.flatten(1).split(widths, dim=1)


def _mixed_in_plain_pytorch(parts: Order, bank: Tensor, topk: int) -> Tensor:
    """Sub-vectors (r, tiles of all layers, vector_length)."""
    rows = parts.rows()
    if sum(part.numel() for part in rows) <= SMALL:
        return mixed_rows(torch.cat(rows), parts, bank, topk)
    # So many logits are better not copied.
    choices = zip(*(_choose(part, topk) for part in rows), strict=True)
    indices, weights = (torch.cat(chosen) for chosen in choices)
    return _in_order(indices, weights, parts, bank)


def mixed_rows(rows: Tensor, parts: Order, bank: Tensor, topk: int) -> Tensor:
    """The same of all logits behind each other (rows, num_vectors), in the dtype of the bank."""
    return _in_order(*_choose(rows, topk), parts, bank)


def _in_order(indices: Tensor, weights: Tensor, parts: Order, bank: Tensor) -> Tensor:
    order = parts.order
    mixed = mix(indices[order], weights.index_select(0, order), bank)
    return mixed.view(parts.parts[0].shape[0], -1, bank.shape[1])


def _choose(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """As `choose`, and faster for most banks on a CPU.

    Of a row of fewer than 64 topk numbers, PyTorch moves numbers about until the largest are found;
    in a longer row it looks at each once. Up to half as many numbers are added to make it so.
    """
    missing = PER_CHOICE * topk - logits.shape[-1]
    if logits.device.type != "cpu" or not 0 < missing <= logits.shape[-1] // 2:
        return choose(logits, topk)
    with torch.no_grad():
        indices = F.pad(logits, (0, missing), value=-torch.inf).topk(topk, dim=-1).indices
    return indices, torch.softmax(logits.gather(-1, indices), dim=-1)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on a device now; None where it is off."""
    kind = device.type
    if kind not in ("cpu", "cuda") and not torch.amp.is_autocast_available(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
