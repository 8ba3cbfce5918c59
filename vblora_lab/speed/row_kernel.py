"""One token for each sample: both products of a mixed batch as one Triton kernel.

`rows.add_by_row` is the reference. While texts are written, each layer gets one row per sample, and
two batched products spend more time on being launched and on passing r numbers through memory than
on reading the matrices. Here a program adds a part of one row's update, and reads the matrices of
its sample where they lie.

The output is written over, so this is for passes without gradients, in half precision.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from vblora_lab.speed import kernels

if importlib.util.find_spec("triton"):
    import triton
    import triton.language as tl
else:  # `usable` says no, and the reference does the work
    triton = tl = None

MAX_RANK = 16  # a program holds r x BLOCK_OUT numbers in registers
BLOCK_IN, BLOCK_OUT = 256, 512


def usable(output: Tensor, x: Tensor, A: Tensor, B_T: Tensor, samples: int) -> bool:
    """Whether the kernel takes these: one row a sample, half precision, on a GPU, no gradients.

    Takes what `rows.add_by_row` takes, and the number of samples.
    """
    if triton is None or torch.is_grad_enabled() or not kernels.applies():
        return False
    tensors = (output, x, A, B_T)
    return (
        x.numel() == samples * x.shape[-1]
        and A.dtype.itemsize == 2
        and A.shape[1] <= MAX_RANK
        and all(each.dtype == A.dtype for each in tensors)
        and A.stride(2) == B_T.stride(2) == 1
        and x.is_contiguous()
        and output.is_contiguous()
        and (A.is_cuda or bool(triton.knobs.runtime.interpret))
    )


def add_to_rows(output: Tensor, x: Tensor, A: Tensor, B_T: Tensor, slots: Tensor | None) -> Tensor:
    """output[i] + (x[i] A[s]^T) B_T[s] with s = slots[i], or i; sums are in float32.

    Args:
        output: (samples, ..., out_features), written over.
        x: (samples, ..., in_features), one row for each sample.
        A: (slots, r, in_features).
        B_T: (slots, r, out_features).
        slots: of each sample, (samples,) integers.
    """
    size_in, size_out = x.shape[-1], output.shape[-1]
    grid = (x.numel() // size_in, triton.cdiv(size_out, BLOCK_OUT))
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _add_to_row_kernel[grid](
            output,
            x,
            A,
            B_T,
            A if slots is None else slots,
            *(*A.stride()[:2], *B_T.stride()[:2]),
            IN_SLOTS=slots is not None,
            IN=size_in,
            OUT=size_out,
            R=A.shape[1],
            BLOCK_R=triton.next_power_of_2(A.shape[1]),
            BLOCK_IN=BLOCK_IN,
            BLOCK_OUT=BLOCK_OUT,
        )
    return output


if triton is not None:

    @triton.jit
    def _add_to_row_kernel(  # type: ignore[no-untyped-def]
        output,
        x,
        A,
        B_T,
        slots,
        A_slot,
        A_r,
        B_slot,
        B_r,
        IN_SLOTS: tl.constexpr,
        IN: tl.constexpr,
        OUT: tl.constexpr,
        R: tl.constexpr,
        BLOCK_R: tl.constexpr,
        BLOCK_IN: tl.constexpr,
        BLOCK_OUT: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        slot = row
        if IN_SLOTS:
            slot = tl.load(slots + row).to(tl.int64)
        r = tl.arange(0, BLOCK_R).to(tl.int64)[:, None]  # times a stride, beyond 32 bits
        Ax = tl.zeros((BLOCK_R,), tl.float32)
        for start in range(0, IN, BLOCK_IN):
            i = start + tl.arange(0, BLOCK_IN)[None, :]
            xs = tl.load(x + row * IN + i, mask=i < IN, other=0.0)
            As = tl.load(A + slot * A_slot + r * A_r + i, mask=(r < R) & (i < IN), other=0.0)
            Ax += tl.sum(xs.to(tl.float32) * As.to(tl.float32), axis=1)
        o = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        inside = o < OUT
        there = B_T + slot * B_slot + r * B_r + o[None, :]
        Bs = tl.load(there, mask=(r < R) & inside[None, :], other=0.0)
        update = tl.sum(Ax[:, None] * Bs.to(tl.float32), axis=0)
        before = tl.load(output + row * OUT + o, mask=inside, other=0.0).to(tl.float32)
        sums = (before + update).to(output.dtype.element_ty)
        tl.store(output + row * OUT + o, sums, mask=inside)
