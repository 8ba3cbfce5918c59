"""The admixture as two Triton kernels: one launch forward, one backward, for a whole model.

`admixture.admixture` is the reference and says what is computed. In plain PyTorch it reads or
writes all logits several times: to lay them side by side, to look for the largest, and to fill and
scatter into their gradient. At the size of a 13B model the logits are most of a gigabyte, and that
traffic is all the time there is. Here each sub-vector's logits are read once, from wherever their
layer keeps them, and their gradient is written once:

    forward   row of logits -> topk largest -> softmax -> weighted sum of bank vectors
    backward  for weights w, gradient g of the sub-vector, and e_k = g . bank[i_k]
              logits i_k:  w_k (e_k - sum over j of w_j e_j), and 0 for all others
              bank[i_k]:   + w_k g, by atomic addition

Atomic additions come in any order, so the last digits of the bank's gradient vary from run to run.
After `torch.use_deterministic_algorithms(True)` they are summed in a fixed order, which takes
longer. `kernels.enabled = False`, or VBLORA_LAB_FUSED=0 in the environment, brings the reference
back. `fused` makes one node of autograd's graph of them, and `in_graph` operators for compilers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

if importlib.util.find_spec("triton"):
    import triton
    import triton.language as tl
else:  # `usable` says no, and the reference does the work
    triton = tl = None

enabled = os.environ.get("VBLORA_LAB_FUSED", "1") != "0"

# Products in half precision go through a slow kernel unless rows have 16 bytes: on an H200 a step
# with r=16 took a fifth less time than one with r=4.
ALIGNED = 8

MAX_TOPK = 16
MAX_NUM_VECTORS = 2**14  # a row of logits is held in registers
MAX_VECTOR_LENGTH = 2**11

_INTERPRETED = triton is not None and triton.knobs.runtime.interpret


def applies() -> bool:
    """Whether nobody needs to look inside: compiler (it fuses by itself), tracer or torch.func."""
    looked_into = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return enabled and not looked_into and not torch._C._are_functorch_transforms_active()


def usable(parts: Sequence[Tensor], bank: Tensor, topk: int) -> bool:
    """Whether the kernels take these: float32, sizes within bounds, on a GPU (or interpreted).

    A compiler takes them too, but what `torch.export` writes must run without this package.
    """
    # Not `torch.compiler.is_exporting()`, which a compiler before PyTorch 2.13 takes to be true.
    exports = torch.compiler._is_exporting_flag
    compiles = enabled and torch.compiler.is_compiling() and not exports
    if triton is None or not (compiles or applies()):
        return False
    on_device = bank.is_cuda or _INTERPRETED
    in_bounds = (
        topk <= MAX_TOPK
        and bank.shape[0] <= MAX_NUM_VECTORS
        and bank.shape[1] <= MAX_VECTOR_LENGTH
        and bank.is_contiguous()
    )
    return (
        on_device
        and in_bounds
        and bank.dtype == torch.float32
        and all(part.dtype == torch.float32 and part.is_contiguous() for part in parts)
    )


def padded(r: int, dtype: torch.dtype) -> int:
    """How many rows A and the transpose of B have for a rank r: a multiple of ALIGNED, or r."""
    return r if dtype.itemsize > 2 else -(-r // ALIGNED) * ALIGNED


def forward(
    logits: Tensor,
    offsets: Tensor,
    bank: Tensor,
    topk: int,
    r: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernel.

    Args:
        logits: whose address the offsets start from.
        offsets: (rows,) int64, where each sub-vector's logits start.
        r: the rank; rows are (r, rows / r).

    Returns:
        Sub-vectors (r, rows / r, vector_length), with r rounded up (see `padded`); the indices
        (rows, topk) int32 of the vectors chosen; and their weights (rows, topk) float32.
    """
    (num_vectors, length), rows = bank.shape, offsets.shape[0]
    padded_r = padded(r, dtype)
    out = torch.empty(rows // r * padded_r, length, dtype=dtype, device=bank.device)
    out[rows:].zero_()
    indices = torch.empty(rows, topk, dtype=torch.int32, device=bank.device)
    weights = torch.empty(rows, topk, dtype=torch.float32, device=bank.device)
    with torch.cuda.device_of(bank):  # Triton launches on the current device
        _forward_kernel[(rows,)](
            logits, offsets, bank, out, indices, weights, **_constants(num_vectors, length, topk)
        )
    return out.view(padded_r, rows // r, length), indices, weights


def backward(
    grad: Tensor,
    bank: Tensor,
    indices: Tensor,
    weights: Tensor,
    places: Tensor,
    logits_need: bool,
    bank_needs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Launch the backward kernel.

    Args:
        grad: of the sub-vectors that `forward` gave, along with indices and weights.
        places: (rows,) int64, which row of the result is the gradient of a sub-vector's logits.
        logits_need, bank_needs: a gradient.

    Returns:
        The gradients of all logits (rows, num_vectors) and of the bank, or None.
    """
    (num_vectors, length), (rows, topk) = bank.shape, indices.shape
    grad = grad.contiguous().view(-1, length)[:rows]  # without those of zeros
    in_any_order = bank_needs and not torch.are_deterministic_algorithms_enabled()
    grad_bank = torch.zeros_like(bank) if in_any_order else None
    # One buffer for the gradients of all logits: each part's is a piece of it.
    shape = (rows if logits_need else 0, num_vectors)
    grad_logits = torch.empty(shape, dtype=torch.float32, device=bank.device)
    with torch.cuda.device_of(bank):
        _backward_kernel[(rows,)](
            grad,
            bank,
            indices,
            weights,
            places,
            grad_logits,
            bank if grad_bank is None else grad_bank,
            LOGITS=logits_need,
            BANK=in_any_order,
            **_constants(num_vectors, length, topk),
        )
    if bank_needs and grad_bank is None:
        shares = weights.unsqueeze(-1) * grad.float().unsqueeze(1)
        grad_bank = torch.zeros_like(bank).index_add_(0, indices.flatten(), shares.flatten(0, 1))
    return grad_logits if logits_need else None, grad_bank


@functools.cache
def _constants(num_vectors: int, length: int, topk: int) -> dict[str, int]:
    return {
        "NUM_VECTORS": num_vectors,
        "LENGTH": length,
        "TOPK": topk,
        # Triton's blocks are powers of two; what is over is masked.
        "BLOCK_V": triton.next_power_of_2(num_vectors),
        "BLOCK_L": triton.next_power_of_2(length),
        "BLOCK_K": triton.next_power_of_2(topk),
        # Four logits a load in each of 32 threads a warp, and a few loads in flight.
        "num_warps": 1 if num_vectors <= 512 else 4 if num_vectors <= 4096 else 8,
    }


if triton is not None:

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        logits_of_all,
        offsets,
        bank,
        out,
        indices,
        weights,
        NUM_VECTORS: tl.constexpr,
        LENGTH: tl.constexpr,
        TOPK: tl.constexpr,
        BLOCK_V: tl.constexpr,
        BLOCK_L: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        v = tl.arange(0, BLOCK_V)
        k = tl.arange(0, BLOCK_K)
        position = tl.arange(0, BLOCK_L)
        start = logits_of_all + tl.load(offsets + row)
        logits = tl.load(start + v, mask=v < NUM_VECTORS, other=float("-inf"))
        # A NaN is larger than anything to torch.topk; here it would go unseen.
        is_broken = tl.max((logits != logits).to(tl.int32), axis=0) > 0

        best = tl.full((BLOCK_K,), float("-inf"), tl.float32)
        chosen = tl.zeros((BLOCK_K,), tl.int32)
        for i in tl.static_range(TOPK):
            largest, at = tl.max(logits, axis=0, return_indices=True)
            best = tl.where(k == i, largest, best)
            chosen = tl.where(k == i, at.to(tl.int32), chosen)
            logits = tl.where(v == at, float("-inf"), logits)
        share = tl.exp(best - tl.max(best, axis=0))
        share = share / tl.sum(share, axis=0)
        share = tl.where(is_broken, float("nan"), share)
        tl.store(indices + row * TOPK + k, chosen, mask=k < TOPK)
        tl.store(weights + row * TOPK + k, share, mask=k < TOPK)

        mixed = tl.zeros((BLOCK_L,), tl.float32)
        for i in tl.static_range(TOPK):
            index = tl.sum(tl.where(k == i, chosen, 0), axis=0)
            weight = tl.sum(tl.where(k == i, share, 0.0), axis=0)
            vector = tl.load(bank + index * LENGTH + position, mask=position < LENGTH, other=0.0)
            mixed += weight * vector
        tl.store(
            out + row * LENGTH + position,
            mixed.to(out.dtype.element_ty),
            mask=position < LENGTH,
        )

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        grad,
        bank,
        indices,
        weights,
        places,
        grad_logits,
        grad_bank,
        LOGITS: tl.constexpr,
        BANK: tl.constexpr,
        NUM_VECTORS: tl.constexpr,
        LENGTH: tl.constexpr,
        TOPK: tl.constexpr,
        BLOCK_V: tl.constexpr,
        BLOCK_L: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        v = tl.arange(0, BLOCK_V)
        k = tl.arange(0, BLOCK_K)
        position = tl.arange(0, BLOCK_L)
        inside = position < LENGTH
        g = tl.load(grad + row * LENGTH + position, mask=inside, other=0.0).to(tl.float32)

        along = tl.zeros((BLOCK_K,), tl.float32)  # e_k, the gradient of the weights
        for i in tl.static_range(TOPK):
            index = tl.load(indices + row * TOPK + i)
            if LOGITS:
                vector = tl.load(bank + index * LENGTH + position, mask=inside, other=0.0)
                along = tl.where(k == i, tl.sum(g * vector, axis=0), along)
            if BANK:
                weight = tl.load(weights + row * TOPK + i)
                tl.atomic_add(
                    grad_bank + index * LENGTH + position, weight * g, mask=inside, sem="relaxed"
                )
        if LOGITS:
            share = tl.load(weights + row * TOPK + k, mask=k < TOPK, other=0.0)
            slope = share * (along - tl.sum(share * along, axis=0))
            values = tl.zeros((BLOCK_V,), tl.float32)
            for i in tl.static_range(TOPK):
                index = tl.load(indices + row * TOPK + i)
                values = tl.where(v == index, tl.sum(tl.where(k == i, slope, 0.0), axis=0), values)
            place = tl.load(places + row)
            tl.store(grad_logits + place * NUM_VECTORS + v, values, mask=v < NUM_VECTORS)
