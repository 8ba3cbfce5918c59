"""What the host does for a training pass: a model so small that arithmetic is nothing.

    python benchmarks/host.py

A fast GPU waits for Python and PyTorch's dispatch in small models. That time can be measured on a
CPU: an OPT of 12 layers and 4 tokens, forward and backward without an optimizer, in bf16 autocast,
with gradient checkpointing too. The admixture's kernels are replaced with ones that fill their
results, so that all else is what a GPU's host does. Products are PyTorch's: here they are as short
as a launch and on a GPU several times as long, so this says nothing of the kernels in place of the
thin ones. Times are of this thread on the processor, a few calls of each method in turn, the lowest
fifth: others on the machine disturb them less than the clock on the wall. Writes
results/host-cpu.json.
"""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
from speed_rows import TARGETS
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

import vblora_lab
from vblora_lab.bases import share_weights
from vblora_lab.speed import frozen_linear, kernels, thin_products

LAYERS, WIDTH, ROUNDS, IN_A_ROW = 12, 32, 60, 4
RESULT = Path(__file__).parent / "results" / "host-cpu.json"


class Filled:
    """In a kernel's place: fills what the kernel would write.

    Args:
        results: which of its arguments are written.
    """

    def __init__(self, *results: int) -> None:
        self.results = results

    def __getitem__(self, grid: object) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            for i in self.results:
                arguments[i].fill_(0.01)

        return launch


@contextmanager
def without_kernels() -> Iterator[None]:
    mixing = {"_forward_kernel": Filled(3, 5), "_backward_kernel": Filled(5, 6)}
    with (
        mock.patch.multiple(kernels, **mixing, _INTERPRETED=True),
        mock.patch.object(frozen_linear, "thin_products", lambda *_: thin_products.IN_PYTORCH),
        mock.patch.object(torch.cuda, "device_of", lambda _: nullcontext()),
    ):
        yield


def base_model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH}
    depth = {"num_hidden_layers": LAYERS, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=64, max_position_embeddings=32, **sizes, **depth))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
    return model.train()


def adapted(method: str, base: nn.Module, targets: list[str]) -> nn.Module:
    model = share_weights(base).requires_grad_(False)
    if method == "PEFT LoRA":
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=targets))
    elif method == "vblora_lab":
        sizes = {"r": 8, "num_vectors": 16, "vector_length": 16}
        config = vblora_lab.VBLoRAConfig(**sizes, target_modules=targets)
        model = vblora_lab.get_peft_model(model, config)
    model.enable_input_require_grads()
    return model


def microseconds(model: nn.Module, tokens: torch.Tensor) -> tuple[float, float]:
    """Of one pass, forward and backward."""
    start = time.thread_time()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=tokens, labels=tokens).loss
    between = time.thread_time()
    loss.backward()
    end = time.thread_time()
    model.zero_grad()
    return 1e6 * (between - start), 1e6 * (end - between)


def measured(targets: list[str], checkpointing: bool) -> dict[str, Any]:
    base, tokens = base_model(), torch.randint(2, 64, (1, 4))
    methods = ("frozen base", "PEFT LoRA", "vblora_lab")
    models = {method: adapted(method, base, targets) for method in methods}
    for model in models.values():
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    for number in range(ROUNDS):
        for method, model in models.items():
            passes = [microseconds(model, tokens) for _ in range(IN_A_ROW)]
            if number >= 3:
                times[method] += passes
        gc.collect()
    low = {
        method: [sorted(side)[len(side) // 5] for side in zip(*taken, strict=True)]
        for method, taken in times.items()
    }
    frozen, adapted_layers = low["frozen base"], LAYERS * len(targets)
    return {
        method: {
            "forward": round(forward),
            "backward": round(backward),
            "times frozen": round((forward + backward) / sum(frozen), 3),
            "added per adapted layer": round(
                (forward + backward - sum(frozen)) / adapted_layers, 1
            ),
        }
        for method, (forward, backward) in low.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)  # whose start takes longer than so small a product
    gc.disable()
    about = {
        "microseconds": "of one training pass on the host, see benchmarks/host.py",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    record: dict[str, Any] = {"about": about}
    for name, again in product(("qv", "all"), (False, True)):
        with without_kernels():
            row = f"opt, {LAYERS} layers, {name}" + ", checkpointed" * again
            record[row] = measured(TARGETS[name], again)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
