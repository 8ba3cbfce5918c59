"""The kernels for a compiler: operators that it puts into its graph as they are.

`kernels.py` finds each layer's logits by address, which a compiler doesn't know: it may put tensors
elsewhere. Here the logits are laid behind each other first, and so are their gradients:

    logits    (rows, num_vectors)   rows as the layers keep them: A's are (r, tiles), B's (tiles, r)
    order     (rows,)               which of them each sub-vector of the result is made of
    result    (r, tiles, vector_length)

The order is a matter of sizes alone, so layers of equal sizes come one after the other, and a few
ranges of numbers say it. Pieces are put together by the operators and not by the compiler, which
would write a kernel of its own for each of hundreds of pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.library import custom_op

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
    r, length = logits[0][0].shape[0], bank.shape[1]
    # Number 2 i is the A of layer i, and 2 i + 1 its B.
    tiles = [size for A, B in logits for size in (A.shape[1], B.shape[0])]
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(tiles):
        by_size.setdefault((number % 2, size), []).append(number)
    numbers = [number for group in by_size.values() for number in group]
    parts = [logits[number // 2][number % 2] for number in numbers]
    order = _order([(*kind, len(group)) for kind, group in by_size.items()], r, bank.device)
    sub_vectors = torch.ops.vblora_lab.mix(parts, order, bank, topk, dtype)[0]
    columns = _Cut.apply(  # type: ignore[no-untyped-call]
        sub_vectors.flatten(1), [tiles[number] * length for number in numbers]
    )
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


class _Cut(torch.autograd.Function):
    """Ranges of columns, whose gradients one operator puts together."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, widths: list[int]) -> tuple[Tensor, ...]:
        return matrix.split(widths, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.ops.vblora_lab.join(gradients), None


@custom_op("vblora_lab::join", mutates_args=())
def _join(parts: Sequence[Tensor]) -> Tensor:
    """Matrices (rows, ...) side by side."""
    return torch.cat(list(parts), dim=1)


@_join.register_fake
def _(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].new_empty(parts[0].shape[0], sum(part.shape[1] for part in parts))


@custom_op("vblora_lab::mix", mutates_args=())
def _mix(
    parts: Sequence[Tensor], order: Tensor, bank: Tensor, topk: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.forward`. The first part is the logits of an A."""
    logits = torch.cat([part.flatten(0, 1) for part in parts])
    offsets = order * bank.shape[0]
    return kernels.forward(logits, offsets, bank, topk, parts[0].shape[0], dtype)


@_mix.register_fake
def _(
    parts: Sequence[Tensor], order: Tensor, bank: Tensor, topk: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    r, rows = parts[0].shape[0], order.shape[0]
    shape = kernels.padded(r, dtype), rows // r, bank.shape[1]
    chosen = order.new_empty(rows, topk, dtype=torch.int32)
    return bank.new_empty(shape, dtype=dtype), chosen, bank.new_empty(rows, topk)


@custom_op("vblora_lab::mix_backward", mutates_args=())
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
    both = kernels.backward(grad, bank, indices, weights, order, logits_need, bank_needs)
    logits, own = (bank.new_empty(0) if each is None else each for each in both)
    return logits, own


@_mix_backward.register_fake
def _(
    grad: Tensor,
    bank: Tensor,
    indices: Tensor,
    weights: Tensor,
    order: Tensor,
    logits_need: bool,
    bank_needs: bool,
) -> tuple[Tensor, Tensor]:
    shape = (order.shape[0], bank.shape[0]) if logits_need else (0,)
    return bank.new_empty(shape), bank.new_empty(bank.shape if bank_needs else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    parts, order, bank, *_ = inputs
    _, indices, weights = output
    ctx.mark_non_differentiable(indices, weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(bank, indices, weights, order)
    ctx.shapes = [part.shape for part in parts]
    ctx.needs = any(part.requires_grad for part in parts), bank.requires_grad


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    bank, indices, weights, order = ctx.saved_tensors
    both = torch.ops.vblora_lab.mix_backward(grad, bank, indices, weights, order, *ctx.needs)
    logits, own = (each if needed else None for each, needed in zip(both, ctx.needs, strict=True))
    if logits is None:
        return [None for _ in ctx.shapes], None, own, None, None
    rows = cast(Tensor, logits).split([shape[0] * shape[1] for shape in ctx.shapes])
    pieces = [piece.view(shape) for piece, shape in zip(rows, ctx.shapes, strict=True)]
    return pieces, None, own, None, None


_mix.register_autograd(_gradients, setup_context=_keep)
