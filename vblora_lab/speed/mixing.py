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
from torch import Tensor

from vblora_lab.admixture import admixture, choose, mix
from vblora_lab.speed import kernels
from vblora_lab.speed.in_graph import mixed_in_graph

SMALL = 2**23  # logits that are laid side by side in plain PyTorch: 32 MiB in float32


class Matrices(NamedTuple):
    """A (r, in_features) and the transpose of B, (r, out_features).

    There may be rows of zeros at their ends (see `kernels.fused_admixture`).
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
    if kernels.usable([part for pair in logits for part in pair], bank, topk):
        if torch.compiler.is_compiling():
            return [Matrices(*pair) for pair in mixed_in_graph(logits, bank, topk, dtype)]
        sub_vectors = kernels.fused_admixture(logits, bank, topk, dtype)
    else:
        sub_vectors = _side_by_side(logits, bank, topk).to(dtype)
    length = bank.shape[1]
    columns = [tiles * length for A, B in logits for tiles in (A.shape[1], B.shape[0])]
    parts = iter(sub_vectors.flatten(1).split(columns, dim=1))
    return [Matrices(A, B_T) for A, B_T in zip(parts, parts, strict=True)]


def _side_by_side(logits: Sequence[tuple[Tensor, Tensor]], bank: Tensor, topk: int) -> Tensor:
    """Sub-vectors (r, tiles of all layers, vector_length), in plain PyTorch."""
    parts = [part for A, B in logits for part in (A, B.transpose(0, 1))]
    if sum(part.numel() for part in parts) <= SMALL:
        return admixture(torch.cat(parts, dim=1), bank, topk)
    # So many logits are better not copied: choose layer by layer, and mix what was chosen.
    choices = zip(*(choose(part, topk) for part in parts), strict=True)
    indices, weights = (torch.cat(chosen, dim=1) for chosen in choices)
    return mix(indices, weights, bank)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on a device now; None where it is off."""
    kind = device.type
    if kind not in ("cpu", "cuda") and not torch.amp.is_autocast_available(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
