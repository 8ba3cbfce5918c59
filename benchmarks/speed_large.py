"""Two sections of `speed.py`, on a GPU: a model of 8 billion parameters, and mixed batches."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from speed_clock import clean_up, interleaved
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
)
from torch import nn

LARGE_ROWS = [
    Row("llama-3-8b", 1, 2048, "llama-qv", r=8),
    Row("llama-3-8b", 1, 2048, "llama-all", r=8),
]
MIXED_ROW = Row("opt-1.3b", 32, 64, "qv")
ADAPTERS = (1, 8, 32)  # in a batch of 32 samples


def large(args: argparse.Namespace) -> Iterator[dict]:
    """Steps with gradient checkpointing in bf16, as a model of this size is trained on one card."""
    if not CUDA:
        return
    for row in LARGE_ROWS:
        base = base_model(row.model)
        batch = batch_of(row, base.config.vocab_size)
        calls: dict[str, Callable[[], object]] = {}
        memory = {}
        for method in METHODS:
            model = adapted(method, base, row)
            model.gradient_checkpointing_enable({"use_reentrant": False})
            calls[method] = partial(make_step(model, make_optimizer(model)), batch)
            calls[method]()
            torch.cuda.reset_peak_memory_stats()
            calls[method]()
            memory[method] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        yield {
            "section": "large",
            "row": row.name,
            "milliseconds": interleaved(calls, max(5, args.steps // 4), 2),
            "peak_gib": memory,
            "floor": floor(base, row),
        }
        del base, calls, model
        clean_up()


def floor(base: nn.Module, row: Row) -> dict[str, float]:
    """What no step can do without: floating-point operations of the products, and bytes read.

    A frozen weight is multiplied three times under checkpointing (forward, again, and for the
    gradient of its input) and read as often; A and B five times, since they get gradients too.
    """
    tokens = row.batch * row.length
    linear = [m for m in base.modules() if isinstance(m, nn.Linear)]
    weights = sum(m.weight.numel() for m in linear)
    ends = tuple(row.where()["target_modules"])
    targets = [m for name, m in base.named_modules() if name.endswith(ends)]
    adapter = sum(row.r * (m.in_features + m.out_features) for m in targets)
    return {
        "teraflops_base": round(6 * tokens * weights / 1e12, 2),
        "teraflops_adapter": round(10 * tokens * adapter / 1e12, 3),
        "gigabytes_weights": round(3 * weights * base.dtype.itemsize / 1e9, 2),
    }


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
