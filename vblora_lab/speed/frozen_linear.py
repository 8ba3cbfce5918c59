"""A frozen linear layer and its low-rank update in one call: y = x W^T + b + (x A^T) B^T.

The sum of what PyTorch's own operations compute, forward and backward, in one node of the graph
instead of five. On a fast GPU most of a small layer's time is Python and autograd preparing the
next kernel, so fewer nodes are less time. Gradients, with g = dL/dy and no gradient of W and b:

    dx = g W + (g B) A        dA = (g B)^T x        dB^T = (x A^T)^T g
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def frozen_weight(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias of a layer that is no more than them; None for any other.

    Other are subclasses (quantised, sharded), layers with hooks or a forward method of their own
    (offloading puts one there), and layers that are trained.
    """
    kind = type(layer)
    if kind not in (nn.Linear, Conv1D) or "forward" in layer.__dict__:
        return None
    weight, bias = cast(tuple[Tensor, Tensor | None], (layer.weight, layer.bias))
    hooked = (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if hooked or trained or type(weight) is not nn.Parameter:
        return None
    return (weight if kind is nn.Linear else weight.t()), bias


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B_T: Tensor) -> Tensor:
    """The layer's output (..., out) for x (..., in), weight (out, in), A (r, in), B_T (r, out).

    All of one dtype. Only x, A and B_T get gradients, and those can be differentiated again.
    """
    # Function.apply in Python looks for torch.func, which nobody uses here (see `fused.applies`),
    # and takes as long as two launches; this is what it calls then.
    apply = super(torch.autograd.Function, _FrozenLinear).apply
    return cast(Tensor, apply(x, weight, bias, A, B_T))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B_T: Tensor
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = F.linear(rows, weight, bias)
        Ax = F.linear(rows, A)
        y.addmm_(Ax, B_T)
        ctx.save_for_backward(x, Ax, weight, A, B_T)
        return y.view(*x.shape[:-1], y.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, Ax, weight, A, B_T = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled():  # create_graph=True; the Ax that is kept has no graph
            Ax = F.linear(rows, A)
        g = grad.reshape(-1, grad.shape[-1])
        gB = F.linear(g, B_T)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g.mm(weight).addmm_(gB, A).view(x.shape)
        return dx, None, None, gB.t().mm(rows), Ax.t().mm(g)
