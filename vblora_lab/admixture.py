"""The mathematics of VB-LoRA: from logits and one vector bank to the LoRA matrices A and B.

Every sub-vector u of A and B is an admixture of `topk` vectors of a bank that the whole model
shares (VB-LoRA, arXiv 2405.15179, section 3.2):

    I = indices of the topk largest of the logits s          (which vectors)
    w = softmax(s[I])                                        (how much of each)
    u = sum over i in I of w_i * bank[i]

Only the chosen logits get a gradient; a logit that isn't chosen gets none, and
moves only when it overtakes a chosen one. The bank gets a gradient from every sub-vector.

These few functions are the reference: everything that mixes calls them. They take logits of any
leading shape, so that the sub-vectors of one matrix or of a whole model mix in one call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def choose(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Choose `topk` bank vectors for each sub-vector.

    Args:
        logits: (..., num_vectors), one logit per sub-vector and bank vector.
        topk: how many vectors to choose, 1 <= topk <= num_vectors.

    Returns:
        indices (..., topk) int64, largest logit first, and their weights (..., topk) in the dtype
        of the logits; the weights of one sub-vector are positive and sum to 1.
    """
    chosen_logits, indices = logits.topk(topk, dim=-1)
    return indices, torch.softmax(chosen_logits, dim=-1)


def mix(indices: Tensor, weights: Tensor, bank: Tensor) -> Tensor:
    """Mix chosen bank vectors: the sum over k of weights[..., k] * bank[indices[..., k]].

    Args:
        indices: (..., topk) integers below num_vectors.
        weights: (..., topk).
        bank: (num_vectors, vector_length).

    Returns:
        Sub-vectors (..., vector_length).
    """
    # PyTorch's "bag" is that sum; it spares the memory of topk vectors for each sub-vector. On GPUs
    # it has no gradients in bfloat16, so that half precision is mixed in float32 and then rounded.
    topk = indices.shape[-1]
    dtype = torch.promote_types(bank.dtype, torch.float32)
    mixed = F.embedding_bag(
        indices.reshape(-1, topk),
        bank.to(dtype),
        per_sample_weights=weights.to(dtype).reshape(-1, topk),
        mode="sum",
    )
    return mixed.to(bank.dtype).view(*indices.shape[:-1], bank.shape[1])


def admixture(logits: Tensor, bank: Tensor, topk: int) -> Tensor:
    """Logits (..., num_vectors) and bank (num_vectors, vector_length) -> (..., vector_length)."""
    return mix(*choose(logits, topk), bank)


def rows_of_A(sub_vectors: Tensor) -> Tensor:
    """Lay sub-vectors (r, in_tiles, vector_length) end to end: A (r, in_tiles * vector_length)."""
    return sub_vectors.flatten(1)


def columns_of_B(sub_vectors: Tensor) -> Tensor:
    """Stack sub-vectors (out_tiles, r, vector_length): B (out_tiles * vector_length, r)."""
    return sub_vectors.transpose(1, 2).flatten(0, 1)


def low_rank_matrices(
    logits_A: Tensor, logits_B: Tensor, bank: Tensor, topk: int
) -> tuple[Tensor, Tensor]:
    """Build the two LoRA matrices of one layer.

    Args:
        logits_A: (r, in_features / vector_length, num_vectors).
        logits_B: (out_features / vector_length, r, num_vectors).
        bank: (num_vectors, vector_length).
        topk: how many bank vectors make a sub-vector.

    Returns:
        A (r, in_features) and B (out_features, r); the layer's update is B @ A.
    """
    A = rows_of_A(admixture(logits_A, bank, topk))
    B = columns_of_B(admixture(logits_B, bank, topk))
    return A, B
