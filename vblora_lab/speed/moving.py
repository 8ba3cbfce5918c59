"""The admixture of logits that lie elsewhere in each pass, in any precision.

FSDP gathers the parameters of a unit (a decoder layer, say) into memory that it takes and gives
back, rounded to half precision if asked to. Tables of addresses, as `fused.fused_matrices` keeps
them, would be made anew each time, and half precision wouldn't be for its kernels at all. So logits
are laid behind each other first (see `order`), in float32 or finer, and where each lies among them
is a matter of sizes alone. One copy and one launch a unit, and as much on the way back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vblora_lab.speed import kernels
from vblora_lab.speed.mixing import Matrices, cut_columns, mixed_rows
from vblora_lab.speed.once import once
from vblora_lab.speed.order import Order, Sizes, order_of


def mix_moving(
    logits: Sequence[tuple[Tensor, Tensor]], bank: Tensor, topk: int, dtype: torch.dtype
) -> list[Matrices]:
    """Build the matrices of some layers in one admixture, as `mixing.mix_all` does.

    Args:
        logits: per layer, those of A (r, in_tiles, num_vectors) and B (out_tiles, r, num_vectors).
        bank: (num_vectors, vector_length).
        topk: how many bank vectors make a sub-vector.
        dtype: of the result; mixing itself happens in float32 or finer.
    """
    parts, r = Order(logits), logits[0][0].shape[0]
    rows = torch.cat(parts.rows())
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    bank = bank.to(rows.dtype)
    if kernels.usable([rows], bank, topk):
        tables = _tables(parts.sizes, r, rows.shape[1], rows.device)
        mixed = cast(Tensor, _Admixture.apply(rows, bank, *tables, topk, r, dtype))  # type: ignore[no-untyped-call]
    else:
        mixed = mixed_rows(rows, parts, bank, topk).to(dtype)
    return [Matrices(*pair) for pair in parts.by_layer(cut_columns(mixed, parts.tiles))]


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # a step of training may use tables that were made under it
def _tables(sizes: Sizes, r: int, num_vectors: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each sub-vector, where its logits start and which row they are. Both (rows,) int64."""
    order = order_of(sizes, r, device)
    return order * num_vectors, order


class _Admixture(torch.autograd.Function):
    """Of rows of logits (rows, num_vectors), by the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        bank: Tensor,
        offsets: Tensor,
        order: Tensor,
        topk: int,
        r: int,
        dtype: torch.dtype,
    ) -> Tensor:
        out, indices, weights = kernels.forward(rows, offsets, bank, topk, r, dtype)
        ctx.save_for_backward(bank, indices, weights, order)
        ctx.learned = [each for each in (rows, bank) if each.requires_grad]  # see `once`
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bank, indices, weights, order = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        with torch.no_grad():
            both = kernels.backward(grad, bank, indices, weights, order, *needs)
        grad_rows, grad_bank = (once(gradient, ctx.learned) for gradient in both)
        return grad_rows, grad_bank, None, None, None, None, None
