"""The products of a layer, or of some with one input, that have a side of only r numbers.

`frozen_linear` says what is computed. Of its products, those with W are the arithmetic. The others
are thin: little arithmetic, as much traffic, and on a GPU a launch each, which in a small model
takes longer than the product:

    down and up    Ax = x A^T, and y = b + Ax B^T of each layer         forward
    back through   gAx = g B, and the sum of gAx A over the layers      backward
    gradients      dA = gAx^T x and dB^T = Ax^T g of each layer         backward

`ThinProducts` computes them by PyTorch's own, and `FusedThinProducts` with a Triton kernel for each
of the three lines, whatever the number of layers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vblora_lab.speed import kernels, thin_kernels
from vblora_lab.speed.launch import Launch

Tensors = Sequence[Tensor]  # one for each layer
Biases = Sequence[Tensor | None]

MAX_ROWS = 64  # of all A's: a program holds so many sums for each of its tokens
LONGEST = 8192  # numbers in a sum: PyTorch's products share longer ones out over more programs
TOKENS = 64  # rows of x that a program reads


class ThinProducts:
    """By PyTorch's products, on any device."""

    def down_and_up(
        self, x: Tensor, A: Tensors, B_T: Tensors, biases: Biases
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """What the updates make of an input.

        Args:
            x: (rows, in).
            A: (r, in) of each layer.
            B_T: (r, out) of each.
            biases: (out,) of each, or None.

        Returns:
            Ax (rows, layers * r); the A's as one matrix (layers * r, in), if they were laid so; and
            b + Ax B^T (rows, out) of each layer.
        """
        stacked = _stacked(A)
        Ax = F.linear(x, stacked)
        if len(A) == 1:
            return Ax, stacked, [_up(Ax, B_T[0], biases[0])]
        parts = zip(Ax.chunk(len(A), dim=1), B_T, biases, strict=True)
        return Ax, stacked, [_up(*each) for each in parts]

    def back_through(
        self, g: Tensors, A: Tensors, stacked: Tensor | None, B_T: Tensors
    ) -> tuple[Tensor, Tensor]:
        """Of the g (rows, out) of each layer: gAx (rows, layers * r), and gAx A (rows, in)."""
        stacked = _stacked(A) if stacked is None else stacked
        if len(g) == 1:
            gAx = F.linear(g[0], B_T[0])
        elif torch.is_grad_enabled():
            gAx = torch.cat([F.linear(*each) for each in zip(g, B_T, strict=True)], dim=1)
        else:
            gAx = stacked.new_empty(g[0].shape[0], stacked.shape[0])
            for part, its_g, B in zip(gAx.chunk(len(g), dim=1), g, B_T, strict=True):
                torch.mm(its_g, B.t(), out=part)
        return gAx, gAx.mm(stacked)

    def gradients(self, x: Tensor, g: Tensors, Ax: Tensor, gAx: Tensor) -> tuple[Tensors, Tensors]:
        """For each layer: dA (r, in) and dB^T (r, out)."""
        if len(g) == 1:
            return [gAx.t().mm(x)], [Ax.t().mm(g[0])]
        parts = Ax.chunk(len(g), dim=1)
        dA = gAx.t().mm(x).chunk(len(g))
        return dA, [part.t().mm(its_g) for part, its_g in zip(parts, g, strict=True)]


class FusedThinProducts(ThinProducts):
    """By Triton kernels, for tensors of these sizes that are contiguous but for A and B^T.

    Args:
        rows: of x.
        size: of each of them.
        outs: sizes of the layers' outputs.
        r: rows of each A.
        strides: between the rows of an A, and of a B^T.
        biased: whether all layers have a bias, or none.
    """

    def __init__(
        self,
        rows: int,
        size: int,
        outs: tuple[int, ...],
        r: int,
        strides: tuple[int, int],
        biased: bool,
    ) -> None:
        self._r, self._outs, n = r, outs, len(outs)
        block_r = max(16, 1 << (n * r - 1).bit_length())  # tensor cores take no fewer
        block = 128 if block_r <= 32 else 64
        width = 32 if size + sum(outs) <= 4096 else 64
        sizes = (rows, size, *_three(outs))
        constants = (n, r, block_r, TOKENS, block)

        def grid(columns: int, programs: int) -> tuple[int, int]:
            # Programs of the same tokens all compute their r sums: more only fill the device.
            blocks = _ceil(rows, TOKENS)
            return blocks, max(1, min(programs // blocks, _ceil(columns, block)))

        down_up = (*sizes, *strides, int(biased), *constants)
        self._down_up = Launch(thin_kernels.down_up, grid(max(outs), 256), down_up, num_warps=8)
        back = (*sizes, *strides, *constants)
        self._back = Launch(thin_kernels.back, grid(size, 128), back)
        blocks = sum(_ceil(columns, width) for columns in (size, *outs))
        gradients = (*sizes, *constants[:3], 128 if block_r <= 32 else 64, width)
        self._gradients = Launch(thin_kernels.gradients, (blocks,), gradients, num_stages=4)

    def down_and_up(
        self, x: Tensor, A: Tensors, B_T: Tensors, biases: Biases
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        if x.shape[1] > LONGEST:
            return super().down_and_up(x, A, B_T, biases)
        rows = x.shape[0]
        Ax = x.new_empty(rows, len(A) * self._r)
        ys = [x.new_empty(rows, out) for out in self._outs]
        bias = [x if each is None else each for each in biases]  # then it isn't read
        with torch.cuda.device_of(x):  # Triton launches on the current device
            self._down_up(x, *_three(A), *_three(B_T), *_three(bias), *_three(ys), Ax)
        return Ax, None, ys

    def back_through(
        self, g: Tensors, A: Tensors, stacked: Tensor | None, B_T: Tensors
    ) -> tuple[Tensor, Tensor]:
        if sum(self._outs) > LONGEST:
            return super().back_through(g, A, stacked, B_T)
        first, rows = g[0], g[0].shape[0]
        gAx = first.new_empty(rows, len(g) * self._r)
        dx = first.new_empty(rows, A[0].shape[1])
        with torch.cuda.device_of(first):
            self._back(*_three(g), *_three(A), *_three(B_T), gAx, dx)
        return gAx, dx

    def gradients(self, x: Tensor, g: Tensors, Ax: Tensor, gAx: Tensor) -> tuple[Tensors, Tensors]:
        dA = [x.new_empty(self._r, x.shape[1]) for _ in g]
        dB_T = [x.new_empty(self._r, out) for out in self._outs]
        with torch.cuda.device_of(x):
            self._gradients(x, *_three(g), Ax, gAx, *_three(dA), *_three(dB_T))
        return dA, dB_T


def thin_products(x: Tensor, A: Tensors, B_T: Tensors, biases: Biases) -> ThinProducts:
    """By which these are computed; takes what `ThinProducts.down_and_up` takes."""
    on_gpu = x.is_cuda or kernels._INTERPRETED
    if not on_gpu or x.dtype.itemsize != 2 or not kernels.enabled or type(x) is not Tensor:
        return IN_PYTORCH  # other types may be pieces of a tensor on several devices
    return _chosen(
        (x.shape, x.stride(), x.dtype, x.device),
        tuple(map(_shape, A)),
        tuple(map(_shape, B_T)),
        tuple(map(Tensor.stride, A)),
        tuple(map(Tensor.stride, B_T)),
        tuple([None if bias is None else bias.dtype for bias in biases]),
    )


IN_PYTORCH = ThinProducts()
Sizes = tuple[torch.Size, ...]
Strides = tuple[tuple[int, ...], ...]
_shape = attrgetter("shape")


@functools.lru_cache(maxsize=1024)
def _chosen(
    x: tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device],
    A: Sizes,
    B_T: Sizes,
    A_strides: Strides,
    B_strides: Strides,
    biases: tuple[torch.dtype | None, ...],
) -> ThinProducts:
    """By what is asked in no time: a launch knows the code for dtypes and sizes of one kind."""
    (rows, size), strides, dtype, device = x
    r, apart = A[0][0], (A_strides[0][0], B_strides[0][0])
    fits = (
        thin_kernels.triton is not None
        and _has_tensor_cores(device)
        and rows > 0
        and len(A) <= thin_kernels.MAX_LAYERS
        and len(A) * r <= MAX_ROWS
        and set(biases) in ({None}, {dtype})
        and strides == (size, 1)
        and set(A_strides) == {(apart[0], 1)}
        and set(B_strides) == {(apart[1], 1)}
    )
    if not fits:
        return IN_PYTORCH
    outs = tuple([out for _, out in B_T])
    return FusedThinProducts(rows, size, outs, r, apart, biased=biases[0] is not None)


@functools.cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Those of NVIDIA that take bfloat16."""
    if device.type != "cuda":
        return True  # interpreted
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _up(Ax: Tensor, B_T: Tensor, bias: Tensor | None) -> Tensor:
    """(rows, out)"""
    return Ax.mm(B_T) if bias is None else torch.addmm(bias, Ax, B_T)


def _stacked(A: Tensors) -> Tensor:
    """(layers * r, in)"""
    return A[0] if len(A) == 1 else torch.cat(tuple(A))


def _three(each: Sequence[Any]) -> Sequence[Any]:
    """For the arguments of a kernel, the last once more where there are fewer layers."""
    return (*each, *[each[-1]] * (thin_kernels.MAX_LAYERS - len(each)))


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
