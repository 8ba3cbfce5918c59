"""Two sections of `speed.py`, on a GPU: a model of 8 billion parameters, and mixed batches."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from speed_clock import clean_up, interleaved, milliseconds, peak_gib, unless_full
from speed_floor import floor
from speed_peers import LIGER, WITH_LIGER, in_four_bits, unless_broken, why_not, with_liger
from speed_rows import (
    CUDA,
    DEVICE,
    METHODS,
    Row,
    adapted,
    base_model,
    batch_of,
    make_optimizer,
    make_step,
    selected,
)
from torch import nn

# Rows with one kind of base stand together: it is made once.
LARGE_ROWS = [
    *(
        Row("llama-3-8b", batch, length, targets, r=8)
        for batch, length in ((1, 2048), (4, 2048), (1, 8192))
        for targets in ("llama-qv", "llama-all")
    ),
    Row("llama-3-8b", 1, 2048, "llama-all", r=64, suffix="-r64"),
    Row("llama-3-8b", 1, 2048, "llama-all", r=8, nf4=True),
]
LONGEST_STEP = 20.0  # seconds; a method that takes longer isn't measured
LONGEST_ROW = 40.0  # of all its timed steps, unless three of each method take longer
MIXED_ROW = Row("opt-1.3b", 32, 64, "qv")
ADAPTERS = (1, 8, 32)  # in a batch of 32 samples


def large(args: argparse.Namespace) -> Iterator[dict]:
    """Steps with gradient checkpointing in bf16, as a model of this size is trained on one card."""
    if not CUDA:
        print("large: left out, there is no GPU")
        return
    methods = list(METHODS)
    if reason := why_not("liger_kernel"):
        print(f"large: Liger's kernels are left out, {reason}")
    else:
        methods += WITH_LIGER
    rows = selected(LARGE_ROWS, args.rows)
    for (model, nf4), of_kind in groupby(rows, key=lambda row: (row.model, row.nf4)):
        if nf4 and (reason := why_not("bitsandbytes")):
            print(f"large: a base in 4 bits is left out, {reason}")
            continue
        base = in_four_bits(base_model(model)) if nf4 else base_model(model)
        clean_up()
        for row in of_kind:
            yield large_row(base, row, methods, args.steps)
            clean_up()
        del base
        clean_up()


def large_row(base: nn.Module, row: Row, methods: list[str], steps: int) -> dict[str, Any]:
    """The record of a row: times and memory by method, None where it doesn't fit, and the floor.

    Args:
        base: of the row's kind.
        row: to measure.
        methods: names of `METHODS` and `WITH_LIGER`.
        steps: what the command line asks for; a model of this size gets a quarter, and fewer if
            they are slow.
    """
    batch = batch_of(row, base.config.vocab_size)
    before = allocated()
    started: dict[str, Started | None] = {}
    for method in methods:
        others = allocated() - before  # adapters and moments of the methods before this one
        begin = partial(first_steps, method, base, row, batch, others)
        started[method] = unless_broken(method, partial(unless_full, method, begin))
    begun = {method: each for method, each in started.items() if each is not None}
    clean_up()
    a_round = sum(each.milliseconds for each in begun.values()) / 1e3
    rounds = min(max(5, steps // 4), max(3, int(LONGEST_ROW / a_round))) if begun else 0
    # What came before is the warm-up.
    times = interleaved({method: each.step for method, each in begun.items()}, rounds, 0)
    return {
        "section": "large",
        "row": row.name,
        **asdict(row),
        "milliseconds": {method: times.get(method) for method in methods},
        "peak_gib": {m: each and each.peak_gib for m, each in started.items()},
        "floor": floor(base, row),
        "rounds": rounds,
    }


class Started(NamedTuple):
    """A method whose first steps went well."""

    step: Callable[[], object]
    milliseconds: float
    peak_gib: float | None


def first_steps(
    method: str, base: nn.Module, row: Row, batch: dict[str, torch.Tensor], others: float
) -> Started | None:
    """Two steps of a method: the second is timed. None, and a printed line, if it takes too long.

    Args:
        method: of `METHODS` or `WITH_LIGER`.
        base: shared by all methods.
        row: to measure.
        batch: of it.
        others: GiB that other methods hold, which don't count.
    """
    model: Any = adapted(method.removesuffix(LIGER), base, row)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    step = make_step(model, make_optimizer(model))
    call = partial(with_liger(model, step) if method.endswith(LIGER) else step, batch)
    call()
    times: list[float] = []
    peak = peak_gib(lambda: times.append(milliseconds(call)))
    if times[0] > 1e3 * LONGEST_STEP:
        print(f"{row.name}, {method}: left out, a step takes {times[0] / 1e3:.0f} s", flush=True)
        return None
    return Started(call, times[0], None if peak is None else round(peak - others, 3))


def allocated() -> float:
    """GiB that tensors take on the device."""
    return torch.cuda.memory_allocated() / 2**30 if CUDA else 0.0


def mixed(args: argparse.Namespace) -> Iterator[dict]:
    """A batch of 32 samples whose adapters differ: `model(..., adapter_names=[...])`."""
    if not CUDA:
        return
    base = base_model(MIXED_ROW.model)
    tokens = torch.randint(
        4, base.config.vocab_size, (MIXED_ROW.batch, MIXED_ROW.length), device=DEVICE
    )
    for count in ADAPTERS:
        calls: dict[str, Callable[[], object]] = {}
        for method in ("PEFT LoRA", "vblora_lab"):
            model: Any = adapted(method, base, MIXED_ROW, input_gradients=False).eval()
            config = model.peft_config["default"]
            for number in range(1, count):
                model.add_adapter(f"adapter {number}", config)
            names = ["default", *(f"adapter {number}" for number in range(1, count))]
            each = [names[i % count] for i in range(MIXED_ROW.batch)]
            calls[method] = partial(torch.no_grad()(model), tokens, adapter_names=each)
        yield {
            "section": "mixed",
            "row": f"{MIXED_ROW.name}, {count} adapters",
            "milliseconds": interleaved(calls, args.steps, args.warm_up),
        }
        del calls, model
        clean_up()
