"""The kernels for a compiler: operators that it can put into its graph and order among its own.

`kernels.py` finds each layer's logits by address, which a compiler doesn't know: it may put tensors
elsewhere. Here the logits are laid behind each other first, and so are all gradients. That is one
copy of them, and the compiler plans its memory with the rest of the graph.

    logits    (rows, num_vectors)   rows as the layers keep them: A's are (r, tiles), B's (tiles, r)
    order     (rows,)               which of them each sub-vector of the result is made of
    result    (r, tiles, vector_length)

The order is a matter of sizes alone, so layers of equal sizes come one after the other, and a few
ranges of numbers say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from vblora_lab.speed import kernels


def mixed_in_graph(
    logits: Sequence[tuple[Tensor, Tensor]], bank: Tensor, topk: int, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """What `kernels.fused_admixture` computes, cut into the A and B of each layer.

    Args:
        logits: per layer, those of A (r, in_tiles, num_vectors) and B (out_tiles, r, num_vectors),
            float32 and contiguous.
        bank: (num_vectors, vector_length), float32.
        topk: how many bank vectors make a sub-vector.
        dtype: of the result; sums are in float32.

    Returns:
        Per layer, A (r, in_features) and the transpose of B, (r, out_features).
    """
    r, (num_vectors, length) = logits[0][0].shape[0], bank.shape
    # Number 2 i is the A of layer i, and 2 i + 1 its B.
    tiles = [size for A, B in logits for size in (A.shape[1], B.shape[0])]
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(tiles):
        by_size.setdefault((number % 2, size), []).append(number)
    numbers = [number for group in by_size.values() for number in group]
    rows = [logits[number // 2][number % 2].reshape(-1, num_vectors) for number in numbers]
    order = _order([(*kind, len(group)) for kind, group in by_size.items()], r, bank.device)
    sub_vectors = torch.ops.vblora_lab.mix(torch.cat(rows), order, bank, topk, r, dtype)[0]
    columns = sub_vectors.flatten(1).split([tiles[number] * length for number in numbers], dim=1)
    by_number = dict(zip(numbers, columns, strict=True))
    return [(by_number[2 * i], by_number[2 * i + 1]) for i in range(len(logits))]


def _order(groups: Sequence[tuple[int, int, int]], r: int, device: torch.device) -> Tensor:
    """(rows,) int64: for each sub-vector of the result, its row of logits.

    Args:
        groups: 0 for A or 1 for B, tiles, and how many there are of that kind.
        r: the rank.
    """
    parts, before = [], 0
    for side, tiles, count in groups:
        row = torch.arange(before, before + count * r * tiles, device=device)
        by_rank = (
            row.view(count, tiles, r).permute(2, 0, 1)
            if side
            else row.view(count, r, tiles).permute(1, 0, 2)
        )
        parts.append(by_rank.reshape(r, count * tiles))
        before += count * r * tiles
    return torch.cat(parts, dim=1).flatten()


def _launched(kernel: Any) -> Any:
    # An interpreted kernel is a function of NumPy, which nothing can look into.
    return wrap_triton(kernel) if isinstance(kernel, kernels.triton.JITFunction) else kernel


if kernels.triton is not None:

    @triton_op("vblora_lab::mix", mutates_args=())
    def _mix(
        logits: Tensor, order: Tensor, bank: Tensor, topk: int, r: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `kernels.forward`."""
        offsets = order * bank.shape[0]
        return kernels.forward(logits, offsets, bank, topk, r, dtype, _launched)

    @triton_op("vblora_lab::mix_backward", mutates_args=())
    def _mix_backward(
        grad: Tensor,
        bank: Tensor,
        indices: Tensor,
        weights: Tensor,
        order: Tensor,
        logits_need: bool,
        bank_needs: bool,
    ) -> tuple[Tensor, Tensor]:
        """See `kernels.backward`; an empty tensor where nothing is needed."""
        needs = (logits_need, bank_needs)
        both = kernels.backward(grad, bank, indices, weights, order, *needs, _launched)
        logits, own = (bank.new_empty(0) if each is None else each for each in both)
        return logits, own

    def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, order, bank, *_ = inputs
        _, indices, weights = output
        ctx.mark_non_differentiable(indices, weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(bank, indices, weights, order)

    def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        bank, indices, weights, order = ctx.saved_tensors
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        both = torch.ops.vblora_lab.mix_backward(grad, bank, indices, weights, order, *needs)
        logits, own = (g if needed else None for g, needed in zip(both, needs, strict=True))
        return logits, None, own, None, None, None

    _mix.register_autograd(_gradients, setup_context=_keep)
