"""The section ``compiled`` of `speed.py`: training steps under `torch.compile`, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from speed_clock import clean_up, interleaved
from speed_rows import CUDA, METHODS, Row, adapted, base_model, batch_of, make_optimizer
from torch import nn
from torch._dynamo.utils import counters

ROW = Row("opt-125m", 8, 512, "all")
MODES = ("default", "reduce-overhead")
OWN = [method for method in METHODS if method != "PEFT VB-LoRA"]  # whose graph breaks


def compiled(args: argparse.Namespace) -> Iterator[dict]:
    """Steps of compiled models, and of the same ones eager; on a GPU."""
    if not CUDA:
        return
    base = base_model(ROW.model)
    for mode in MODES:
        torch._dynamo.reset()
        calls: dict[str, Callable[[], object]] = {}
        graphs = {}
        for method in OWN:
            counters.clear()
            model = adapted(method, base, ROW, input_gradients=False)
            step = embedded_step(torch.compile(model, mode=mode), model, base)
            calls[method] = partial(step, batch_of(ROW, base.config.vocab_size))
            for _ in range(3):  # with CUDA graphs, the third pass is the first that is replayed
                calls[method]()
            graphs[method] = {
                "graphs": counters["stats"].get("unique_graphs", 0),
                "breaks": sum(counters["graph_break"].values()),
            }
        eager = adapted("vblora_lab", base, ROW, input_gradients=False)
        step = embedded_step(eager, eager, base)
        calls["vblora_lab, eager"] = partial(step, batch_of(ROW, base.config.vocab_size))
        yield {
            "section": "compiled",
            "row": f"{ROW.name}, {mode}",
            "milliseconds": interleaved(calls, args.steps, args.warm_up),
            "graphs": graphs,
        }
        del calls, step, model, eager
        clean_up()


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
