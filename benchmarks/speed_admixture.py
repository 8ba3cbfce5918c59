"""The admixture alone, without a model: in plain PyTorch, in kernels, and the least it can take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from speed_clock import clean_up, interleaved
from speed_rows import CUDA, DEVICE

from vblora_lab.admixture import admixture
from vblora_lab.speed import kernels
from vblora_lab.speed.fused import fused_matrices
from vblora_lab.speed.mixing import mix_all


def admixture_alone(args: argparse.Namespace) -> Iterator[dict]:
    """All sub-vectors of Llama-2-13B, all linear, rank 6, bank 2048 x 256, and of fewer layers."""
    for layers in (1, 4, 12, 40) if CUDA else (1, 2):
        yield admixture_of(layers, args)
        clean_up()


def admixture_of(layers: int, args: argparse.Namespace) -> dict:
    """Forward and backward, and the least time that moving its logits can take."""
    r, num_vectors, length, topk = 6, 2048, 256, 2
    shapes = 4 * [(5120, 5120)] + 2 * [(5120, 13824)] + [(13824, 5120)]
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, device=DEVICE)
        return (0.1 * values).requires_grad_()

    bank = draw(num_vectors, length)
    logits = [
        (draw(r, size_in // length, num_vectors), draw(size_out // length, r, num_vectors))
        for size_in, size_out in layers * shapes
    ]
    inputs = [bank, *(part for pair in logits for part in pair)]
    sub_vectors = sum(part.shape[0] * part.shape[1] for pair in logits for part in pair)
    wide = sub_vectors // r * length
    slope = torch.randn(r, wide, generator=generator, device=DEVICE)

    def pooled() -> None:
        mixed = mix_all(logits, bank, topk, torch.float32)
        joined = torch.cat([m for pair in mixed for m in pair], dim=1)
        torch.autograd.grad(joined, inputs, slope)

    def only(enabled: bool) -> Callable[[], None]:
        def call() -> None:
            kernels.enabled, before = enabled, kernels.enabled
            try:
                pooled()
            finally:
                kernels.enabled = before

        return call

    def deterministic() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            pooled()
        finally:
            torch.use_deterministic_algorithms(False)

    def layer_by_layer() -> None:
        column = 0
        outputs, slopes = [], []
        for pair in logits:
            for part in pair:
                mixed = admixture(part, bank, topk)
                outputs.append(mixed)
                slopes.append(slope[:, column : column + mixed.numel() // r].reshape(mixed.shape))
                column += mixed.numel() // r
        torch.autograd.grad(outputs, inputs, slopes)

    calls = {"eager, pooled": only(False), "eager, layer by layer": layer_by_layer}
    if CUDA:
        calls |= {"kernels": only(True), "kernels, deterministic": deterministic}
        calls["kernels, captured"] = captured_kernels(logits, bank, topk, slope)
    record = {
        "section": "admixture",
        "row": f"{layers} layers, {sub_vectors} sub-vectors",
        "milliseconds": interleaved(calls, max(args.steps, 20), 5),
    }
    logit_bytes = sub_vectors * num_vectors * 4
    return record | {"logit_bytes": logit_bytes} | floor(logit_bytes)


def captured_kernels(
    logits: list, bank: torch.Tensor, topk: int, slope: torch.Tensor
) -> Callable[[], None]:
    """The two kernels as a captured step runs them: without Python's time for 560 tensors."""
    sources = [bank, *(part for pair in logits for part in pair)]

    def call() -> None:
        matrices = fused_matrices(logits, bank, topk, torch.float32)
        slopes = slope.split([matrix.shape[1] for matrix in matrices], dim=1)
        torch.autograd.grad(matrices, sources, slopes)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def floor(logit_bytes: int) -> dict[str, float]:
    """The time to read all logits and write their gradient once, at this device's copy speed."""
    source = torch.randn(2**28 if CUDA else 2**24, device=DEVICE)
    target = torch.empty_like(source)
    taken = interleaved({"copy": lambda: target.copy_(source)}, 20, 5)["copy"]
    bytes_per_ms = 2 * source.nbytes / taken
    return {
        "copy_gb_per_s": round(bytes_per_ms / 1e6, 1),
        "floor_milliseconds": round(2 * logit_bytes / bytes_per_ms, 4),
    }
