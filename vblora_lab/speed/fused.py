"""The kernels for eager passes: all matrices of a model from one node of autograd's graph.

A pass over a small model waits for Python, and this node has hundreds of inputs and outputs. So
what depends on the sizes and places of the logits alone is kept from step to step, and what is done
for each of hundreds of tensors is done in a call for many.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vblora_lab.speed import kernels
from vblora_lab.speed.once import once

_shape = attrgetter("shape")


def fused_matrices(
    logits: Sequence[tuple[Tensor, Tensor]], bank: Tensor, topk: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """A and the transpose of B of each layer, without laying the logits side by side first.

    Args:
        logits: per layer, those of A (r, in_tiles, num_vectors) and B (out_tiles, r, num_vectors),
            float32 and contiguous.
        bank: (num_vectors, vector_length), float32.
        topk: how many bank vectors make a sub-vector.
        dtype: of the result; sums are in float32.

    Returns:
        (r, in_features) of the first layer, (r, out_features) of it, those of the second, ...:
        ranges of columns of one matrix. In half precision r is rounded up to a multiple of
        kernels.ALIGNED with rows of zeros, which add nothing to B A.
    """
    parts = [part for pair in logits for part in pair]
    layout = _layout(tuple(map(Tensor.data_ptr, parts)), tuple(map(_shape, parts)), bank.device)
    # Past Function.apply in Python, as in `frozen_linear`: it looks at each of the inputs.
    apply = cast(Any, super(torch.autograd.Function, _Admixture)).apply
    mixed = apply(bank, layout, topk, dtype, *parts)
    widths = [tiles * bank.shape[1] for tiles in layout.tiles]
    return cast(tuple[Tensor, ...], mixed.split(widths, dim=1))


class Layout(NamedTuple):
    """Where the logits of each sub-vector lie, and where their gradient goes.

    Attributes:
        tiles: of A, B, A, B, ...
        offsets: (rows,) int64, where a sub-vector's logits start: numbers from the first logit of
            the first layer, whichever memory the others lie in. Rows are in the order of the
            result, (r, tiles of all).
        places: (rows,) int64, its row in the buffer for the gradients of all logits.
        pieces: of that buffer, one after the other: how many parts of one shape, and the shape.
        numbers: for each part, which one of all that are in these pieces is its.
    """

    tiles: list[int]
    offsets: Tensor
    places: Tensor
    pieces: list[tuple[int, torch.Size]]
    numbers: list[int]

    def cut(self, gradients: Tensor) -> list[Tensor]:
        """The gradients of all logits, (rows, num_vectors), as one for each part."""
        cut: list[Tensor] = []
        sizes = [count * shape[0] * shape[1] for count, shape in self.pieces]
        for rows, (count, shape) in zip(gradients.split(sizes), self.pieces, strict=True):
            cut += rows.view(count, *shape).unbind()
        return [cut[number] for number in self.numbers]


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # a step of training may use tables that were made under it
def _layout(
    addresses: tuple[int, ...], shapes: tuple[torch.Size, ...], device: torch.device
) -> Layout:
    """Of the logits of A, B, A, B, ...: they stay the same from step to step."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(number)
    in_turn = [number for group in by_shape.values() for number in group]
    starts, before = {}, 0
    for number in in_turn:
        starts[number] = before
        before += shapes[number][0] * shapes[number][1]
    offsets, places = [], []
    for number, (address, shape) in enumerate(zip(addresses, shapes, strict=True)):
        row = torch.arange(shape[0] * shape[1]).view(shape[:2])
        if number % 2:  # B, whose rank comes second
            row = row.t()
        first = (address - addresses[0]) // torch.float32.itemsize
        offsets.append(first + row * shape[2])
        places.append(starts[number] + row)
    tables = [torch.cat(table, dim=1).flatten() for table in (offsets, places)]
    if device.type == "cuda":  # pinned memory, so that the copy doesn't wait for the device
        tables = [table.pin_memory().to(device, non_blocking=True) for table in tables]
    return Layout(
        tiles=[shape[1 - number % 2] for number, shape in enumerate(shapes)],
        offsets=tables[0],
        places=tables[1],
        pieces=[(len(group), shape) for shape, group in by_shape.items()],
        numbers=[number for number, _ in sorted(enumerate(in_turn), key=lambda pair: pair[1])],
    )


class _Admixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, bank: Tensor, layout: Layout, topk: int, dtype: torch.dtype, *parts: Tensor
    ) -> Tensor:
        r = parts[0].shape[0]  # the first are those of an A
        out, indices, weights = kernels.forward(parts[0], layout.offsets, bank, topk, r, dtype)
        ctx.save_for_backward(bank, indices, weights)
        ctx.layout, ctx.parts = layout, parts
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        bank, indices, weights = ctx.saved_tensors
        needs = any(ctx.needs_input_grad[4:]), ctx.needs_input_grad[0]
        with torch.no_grad():
            both = kernels.backward(grad, bank, indices, weights, ctx.layout.places, *needs)
        if torch.is_grad_enabled():
            learned = [each for each in (bank, *ctx.parts) if each.requires_grad]
            both = once(both[0], learned), once(both[1], learned)
        grad_logits, grad_bank = both
        if grad_logits is None:
            return grad_bank, None, None, None, *(None for _ in ctx.parts)
        return grad_bank, None, None, None, *ctx.layout.cut(grad_logits)
