"""Gradients that can't be differentiated again, and say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vblora_lab.errors import UnsupportedError


def once(gradient: Tensor | None, learned: Sequence[Tensor]) -> Tensor | None:
    """A gradient whose own gradient is refused, and not taken to be zero.

    PyTorch's `once_differentiable` refuses it only where the gradient was made of another that can
    be differentiated; that of a plain sum is made of ones.

    Args:
        gradient: None stays None, and with create_graph=False any is what it was.
        learned: the tensors by which somebody may differentiate it.
    """
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    return cast(Tensor, _Once.apply(gradient, *learned))  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *learned: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        raise UnsupportedError(
            "the admixture of VB-LoRA can be differentiated once, not twice: its kernels have no "
            "second gradients. Take gradients without create_graph=True."
        )
