"""One token for each user: the grouped Triton kernel against two batched products.

    python benchmarks/serving_kernel.py

One layer of OPT-1.3b's shape: to the output of a base layer, add for each sample the update of its
own adapter. `plain` is `speed.rows.add_by_row`, with matrices in the order of the rows or gathered
first; `kernel` is `speed.row_kernel`, which reads them where they lie. Timed as called from Python,
and in a CUDA graph of 48 layers, which leaves the device's time alone.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import triton
from torch import Tensor

from vblora_lab.speed import row_kernel
from vblora_lab.speed.rows import add_by_row

FEATURES, RANK, LAYERS, REPEAT = 2048, 8, 48, 20


def plain(output: Tensor, x: Tensor, A: Tensor, B_T: Tensor, slots: Tensor | None) -> Tensor:
    if slots is not None:
        A, B_T = A.index_select(0, slots), B_T.index_select(0, slots)
    return add_by_row(output, x, A, B_T)


WAYS = {"plain": plain, "kernel": row_kernel.add_to_rows}


def microseconds_a_layer(call: Callable[[], object]) -> float:
    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(REPEAT):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(1e3 * median(times) / LAYERS, 2)


def graph_of(call: Callable[[], object]) -> Callable[[], object]:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@torch.no_grad()
def measured(samples: int) -> dict[str, object]:
    generator = torch.Generator("cuda").manual_seed(0)
    new = partial(torch.randn, device="cuda", dtype=torch.bfloat16, generator=generator)
    wide = new(samples, RANK, LAYERS * 2 * FEATURES) / FEATURES**0.5
    parts = wide.split(FEATURES, dim=2)
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    x, outputs = new(samples, 1, FEATURES), [new(samples, 1, FEATURES) for _ in range(LAYERS)]
    slots = torch.randperm(samples, device="cuda")
    exact = plain(outputs[0].double(), x.double(), *(p.double() for p in pairs[0]), slots)
    found = row_kernel.add_to_rows(outputs[0].clone(), x, *pairs[0], slots)
    error = ((found.double() - exact).norm() / exact.norm()).item()
    record: dict[str, object] = {"samples": samples, "kernel's relative error": f"{error:.1e}"}
    for name, way in WAYS.items():
        for order, index in (("in rows", None), ("in slots", slots)):

            def all_layers(way=way, index=index) -> None:
                for output, (A, B_T) in zip(outputs, pairs, strict=True):
                    way(output, x, A, B_T, index)

            record[f"{name}, {order}, us a layer"] = microseconds_a_layer(all_layers)
            record[f"{name}, {order}, us in a graph"] = microseconds_a_layer(graph_of(all_layers))
    return record


def main() -> None:
    about = {"device": torch.cuda.get_device_name(), "python": platform.python_version()}
    print(json.dumps(about | {"torch": torch.__version__, "triton": triton.__version__}))
    for samples in (8, 64, 1024):
        print(json.dumps(measured(samples)), flush=True)


if __name__ == "__main__":
    main()
