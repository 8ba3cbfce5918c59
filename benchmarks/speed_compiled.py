"""The section ``compiled`` of `speed.py`: training steps under `torch.compile`, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from speed_clock import clean_up, interleaved
from speed_peers import LIGER, WITH_LIGER, unless_broken, why_not, with_liger
from speed_rows import (
    CUDA,
    METHODS,
    Row,
    adapted,
    base_model,
    batch_of,
    make_optimizer,
    selected,
)
from torch import nn
from torch._dynamo.utils import counters

COMPILED_ROWS = [
    Row("opt-125m", 8, 512, "all"),
    Row("llama-160m", 8, 512, "llama-all"),  # Liger has no kernels for OPT
]
MODES = ("default", "reduce-overhead")
OWN = [method for method in METHODS if method != "PEFT VB-LoRA"]  # whose graph breaks
EAGER = ", eager"


def compiled(args: argparse.Namespace) -> Iterator[dict]:
    """Steps of compiled models, and of the same ones eager; on a GPU."""
    if not CUDA:
        return
    reason = why_not("liger_kernel")
    if reason:
        print(f"compiled: Liger's kernels are left out, {reason}")
    for row in selected(COMPILED_ROWS, args.rows):
        peers = WITH_LIGER if row.model.startswith("llama") and not reason else []
        methods = [*OWN, *peers, *(f"{each}{EAGER}" for each in ("vblora_lab", *peers))]
        base = base_model(row.model)
        for mode in MODES:
            yield compiled_row(base, row, mode, methods, args)
            clean_up()
        del base
        clean_up()


def compiled_row(
    base: nn.Module, row: Row, mode: str, methods: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    """The record of a row in one of the compiler's modes; None for a method that isn't compiled."""
    torch._dynamo.reset()
    calls: dict[str, Callable[[], object]] = {}
    graphs = {}
    batch = batch_of(row, base.config.vocab_size)
    for method in methods:
        counters.clear()
        begin = partial(first_compiled, method, base, row, mode, batch)
        call = unless_broken(method, begin)  # the compiler may make no graph of others' kernels
        if call is None:
            continue
        calls[method] = call
        if not method.endswith(EAGER):
            graphs[method] = {
                "graphs": counters["stats"].get("unique_graphs", 0),
                "breaks": sum(counters["graph_break"].values()),
            }
    times = interleaved(calls, args.steps, args.warm_up)
    return {
        "section": "compiled",
        "row": f"{row.name}, {mode}",
        "milliseconds": {method: times.get(method) for method in methods},
        "graphs": graphs,
    }


def first_compiled(
    method: str, base: nn.Module, row: Row, mode: str, batch: dict[str, torch.Tensor]
) -> Callable[[], object]:
    """A method's step on a batch, after its first three, in which it is compiled."""
    call = partial(compiled_step(method, base, row, mode), batch)
    for _ in range(3):  # with CUDA graphs, the third pass is the first that is replayed
        call()
    return call


def compiled_step(
    method: str, base: nn.Module, row: Row, mode: str
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """A step of a method by its name, compiled unless that says eager."""
    kind = method.removesuffix(EAGER)
    model = adapted(kind.removesuffix(LIGER), base, row, input_gradients=False)
    call = model if method.endswith(EAGER) else torch.compile(model, mode=mode)
    step = embedded_step(call, model, base)
    return with_liger(model, step) if kind.endswith(LIGER) else step


def embedded_step(
    call: Callable[..., Any], model: nn.Module, base: nn.Module
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Forward, backward and optimizer, from embeddings that get gradients.

    (`enable_input_require_grads` would have them do so within the model, where a compiler has to
    break its graph, for every method alike.)

    Args:
        call: the compiled model.
        model: the same before.
        base: has the embeddings.
    """
    optimizer = make_optimizer(model)
    embed = base.get_input_embeddings()

    def step(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = embed(batch["input_ids"]).detach().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16) if CUDA else nullcontext():
            loss = call(inputs_embeds=inputs, labels=batch["labels"], use_cache=False).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return step
