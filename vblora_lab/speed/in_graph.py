"""The kernels for a compiler: operators that it puts into its graph as they are.

`kernels.py` finds each layer's logits by address, which a compiler doesn't know: it may put tensors
elsewhere. Here the logits are laid behind each other first (see `order.py`), and so are their
gradients. The operators do so and not the compiler, which would write a kernel of its own for each
of hundreds of pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.library import custom_op

from vblora_lab.speed import kernels
from vblora_lab.speed.order import Order


def mixed_in_graph(parts: Order, bank: Tensor, topk: int, dtype: torch.dtype) -> Tensor:
    """The admixture of all logits of a model, as `fused.fused_matrices` computes it.

    Args:
        parts: the logits, float32 and contiguous.
        bank: (num_vectors, vector_length), float32.
        topk: how many bank vectors make a sub-vector.
        dtype: of the result; sums are in float32.

    Returns:
        Sub-vectors (r, tiles, vector_length), in the order of the parts; r is rounded up as there.
    """
    mixed = torch.ops.vblora_lab.mix(parts.parts, parts.order, bank, topk, dtype)
    return cast(Tensor, mixed[0])


def cut_in_graph(matrix: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Ranges of columns, each in memory of its own.

    As views of one matrix they could not leave a graph: PyTorch would make them anew outside, and
    put the gradient of the matrix together from as many matrices of its size.
    """
    return cast(list[Tensor], torch.ops.vblora_lab.cut(matrix, widths))


@custom_op("vblora_lab::cut", mutates_args=())
def _cut(matrix: Tensor, widths: Sequence[int]) -> list[Tensor]:
    parts = [matrix.new_empty(matrix.shape[0], width) for width in widths]
    torch.split_with_sizes_copy(matrix, list(widths), dim=1, out=parts)
    return parts


@_cut.register_fake
def _(matrix: Tensor, widths: Sequence[int]) -> list[Tensor]:
    return [matrix.new_empty(matrix.shape[0], width) for width in widths]


@custom_op("vblora_lab::join", mutates_args=())
def _join(parts: Sequence[Tensor]) -> Tensor:
    """Matrices (rows, ...) side by side."""
    return torch.cat(list(parts), dim=1)


@_join.register_fake
def _(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].new_empty(parts[0].shape[0], sum(part.shape[1] for part in parts))


def _keep_shapes(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.shapes = [part.shape for part in output]


def _joined(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Tensor, None]:
    some = next(gradient for gradient in gradients if gradient is not None)
    pairs = zip(gradients, ctx.shapes, strict=True)  # a layer that wasn't called has none
    return torch.ops.vblora_lab.join(
        [some.new_zeros(s) if g is None else g for g, s in pairs]
    ), None


_cut.register_autograd(_joined, setup_context=_keep_shapes)


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
