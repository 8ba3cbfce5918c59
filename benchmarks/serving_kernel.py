"""Would a grouped Triton kernel beat two batched products in a mixed batch?

    python benchmarks/serving_kernel.py

One layer of OPT-1.3b's shape: to the output of a base layer, add for each sample the update of
its own adapter. `plain` is `speed.rows.add_by_row`; `kernel` does both products in one launch and
reads each sample's matrices where they lie. Timed as called from Python, and in a CUDA graph of 48
layers, which leaves the device's time alone. TRITON_INTERPRET=1 checks the kernel on a CPU.
"""

from __future__ import annotations

import json
import os
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from vblora_lab.speed.rows import add_by_row

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
FEATURES, RANK, LAYERS = (64, 8, 2) if INTERPRETED else (2048, 8, 48)


@triton.jit
def _grouped(  # type: ignore[no-untyped-def]
    output,
    x,
    A,
    B_T,
    rows,
    m,
    stride_slot,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    STRIDE_R: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows + sample).to(tl.int64)
    t = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.arange(0, R)
    inside = (t < m)[:, None]
    Ax = tl.zeros((BLOCK_M, R), tl.float32)
    for start in range(0, IN, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        xs = tl.load(x + (sample * m + t[:, None]) * IN + k[None, :], mask=inside, other=0.0)
        As = tl.load(A + slot * stride_slot + r[:, None] * STRIDE_R + k[None, :])
        if BLOCK_M == 1:
            Ax += tl.sum(xs.to(tl.float32) * As.to(tl.float32), axis=1)[None, :]
        else:
            Ax += tl.dot(xs, tl.trans(As))
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    Bs = tl.load(B_T + slot * stride_slot + r[:, None] * STRIDE_R + o[None, :])
    at = output + (sample * m + t[:, None]) * OUT + o[None, :]
    before = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if BLOCK_M == 1:
        update = tl.sum(tl.trans(Ax) * Bs.to(tl.float32), axis=0)[None, :]
    else:
        update = tl.dot(Ax.to(Bs.dtype), Bs)
    tl.store(at, (before + update).to(output.dtype.element_ty), mask=inside)


def kernel(output: Tensor, x: Tensor, A: Tensor, B_T: Tensor, rows: Tensor) -> Tensor:
    """add_by_row(output, x, A[rows], B_T[rows]) in place. Ranks are those of a dot: 16 or more."""
    n, m, width = x.shape
    out = output.shape[2]
    block_m = 1 if m == 1 else 16
    block_o = 64 if INTERPRETED else 512
    grid = (n, triton.cdiv(m, block_m), out // block_o)
    _grouped[grid](
        output,
        x,
        A,
        B_T,
        rows,
        m,
        A.stride(0),
        IN=width,
        OUT=out,
        STRIDE_R=A.stride(1),
        R=A.shape[1],
        BLOCK_M=block_m,
        BLOCK_K=64 if INTERPRETED else 256,
        BLOCK_O=block_o,
    )
    return output


def plain(output: Tensor, x: Tensor, A: Tensor, B_T: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return add_by_row(output, x, A, B_T)
    return add_by_row(output, x, A.index_select(0, rows), B_T.index_select(0, rows))


def seconds(call, repeat: int = 20) -> float:
    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeat // 2] * 1e3 / LAYERS


def graph(call):
    call()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return captured.replay


def main() -> None:
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    sizes = (
        [(3, 1), (2, 20)]
        if INTERPRETED
        else [(8, 1), (64, 1), (1024, 1), (8, 32), (64, 32), (64, 256)]
    )
    for n, m in sizes:
        generator = torch.Generator(DEVICE).manual_seed(0)
        new = partial(torch.randn, device=DEVICE, dtype=dtype, generator=generator)
        rank = RANK if m == 1 else 16  # what a dot of Triton takes at least
        stack = new(n, rank, LAYERS * 2 * FEATURES) / FEATURES**0.5
        parts = stack.split(FEATURES, dim=2)
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        x, outputs = new(n, m, FEATURES), [new(n, m, FEATURES) for _ in range(LAYERS)]
        rows = torch.randperm(n, device=DEVICE)
        expected = plain(outputs[0].double(), x.double(), *(p.double() for p in pairs[0]), rows)
        found = kernel(outputs[0].clone(), x, *pairs[0], rows)
        error = ((found.double() - expected).norm() / expected.norm()).item()
        record = {"samples": n, "tokens": m, "kernel's relative error": f"{error:.1e}"}
        if not INTERPRETED:
            ways = {
                "plain, in rows": (plain, None),
                "plain, gathered": (plain, rows),
                "kernel": (kernel, rows),
            }
            for name, (way, index) in ways.items():

                def call(way=way, index=index, x=x, outputs=outputs, pairs=pairs):
                    for output, (A, B_T) in zip(outputs, pairs, strict=True):
                        way(output, x, A, B_T, index)

                record[f"{name}, us a layer"] = round(seconds(call), 2)
                record[f"{name}, in a graph"] = round(seconds(graph(call)), 2)
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
