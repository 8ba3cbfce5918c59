"""VB-LoRA built by hand: the worked solutions of chapter 11, in five pieces of plain PyTorch.

They are what a reader could write, in the reader's names: h bank vectors of length b, rank r, k
choices. The library's own code is in `admixture` and `tuner`.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def admixture(logits: Tensor, bank: Tensor, k: int) -> Tensor:
    """Logits (..., h) and a bank (h, b) make sub-vectors (..., b)."""
    chosen, indices = logits.topk(k, dim=-1)
    weights = chosen.softmax(dim=-1)
    return (weights.unsqueeze(-1) * bank[indices]).sum(dim=-2)


class VBLinear(nn.Module):
    """base(x) + B A x, where A and B are mixed from a bank that other layers use too."""

    def __init__(self, base: nn.Linear, bank: nn.Parameter, r: int, k: int):
        super().__init__()
        h, b = bank.shape
        self.base, self.bank, self.k = base, bank, k
        self.logits_A = nn.Parameter(0.1 * torch.randn(r, base.in_features // b, h))
        self.logits_B = nn.Parameter(0.1 * torch.randn(base.out_features // b, r, h))

    def forward(self, x: Tensor) -> Tensor:
        A = admixture(self.logits_A, self.bank, self.k).flatten(1)
        B = admixture(self.logits_B, self.bank, self.k).transpose(1, 2).flatten(0, 1)
        return self.base(x) + x @ A.T @ B.T


def share_bank(linears: Sequence[nn.Linear], h: int, b: int, r: int, k: int) -> list[VBLinear]:
    """A `VBLinear` around each linear layer, all with one new bank."""
    bank = nn.Parameter(torch.empty(h, b).uniform_(-0.02, 0.02))
    return [VBLinear(linear.requires_grad_(False), bank, r, k) for linear in linears]


def inject(
    model: nn.Module, endings: Collection[str], h: int, b: int, r: int, k: int
) -> nn.Parameter:
    """Replace the linear layers whose last name is one of the endings, in place. Gives the bank."""
    model.requires_grad_(False)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in endings
    }
    layers = share_bank(list(linears.values()), h, b, r, k)
    for name, layer in zip(linears, layers, strict=True):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return layers[0].bank


def topk_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What PEFT's file holds of the adapter in the top-k format; banks of up to 255 vectors."""
    tensors = {}
    for name, layer in model.named_modules():
        if not hasattr(layer, "logits_A"):
            continue
        tensors["base_model.vblora_vector_bank"] = layer.bank.detach()
        for matrix in ("A", "B"):
            logits = getattr(layer, f"logits_{matrix}").detach()
            chosen, indices = logits.topk(layer.k, dim=-1)
            weights = chosen.softmax(dim=-1)[..., :-1]  # they sum to 1: the last isn't stored
            key = f"base_model.model.{name}.vblora_logits_{matrix}"
            tensors[f"{key}_topk_indices"] = indices.to(torch.uint8)
            tensors[f"{key}_topk_weights"] = weights.contiguous()
    return tensors


def as_answer(piece: Any, *imports: str) -> str:
    """One of these pieces as code that needs nothing but the imports, and sets `answer`."""
    head = "\n".join(("from __future__ import annotations", *imports))
    return f"{head}\n\n\n{inspect.getsource(piece)}\n\nanswer = {piece.__name__}"
