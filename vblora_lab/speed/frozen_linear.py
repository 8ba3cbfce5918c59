"""Frozen linear layers and their low-rank updates in one call: y = x W^T + b + (x A^T) B^T.

The sum of what PyTorch's own operations compute, forward and backward, in one node of the graph
instead of five a layer. On a fast GPU most of a small layer's time is Python and autograd preparing
the next kernel, so fewer nodes and fewer kernels are less time.

Layers that get the same x (q, k and v; gate and up) are one node too. Their A's stand one above the
other as one matrix, so that x is read once for all of them, and so are the three products with A
and its gradient. Gradients, with g = dL/dy of each layer and no gradient of W and b:

    gAx = g B, side by side      dx = sum of g W, + gAx A      dA = gAx^T x      dB^T = (x A^T)^T g
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


Frozen = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,)


class Adapted(NamedTuple):
    """A frozen layer and its update, all of one dtype."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    A: Tensor  # (r, in)
    B_T: Tensor  # (r, out), the transpose of B


def frozen_weight(layer: nn.Module) -> Frozen | None:
    """Weight and bias of a layer that is no more than them; None for any other.

    Other are subclasses (quantised, sharded), layers with hooks or a forward method of their own
    (offloading puts one there), and layers that are trained.
    """
    kind, own = type(layer), layer.__dict__  # a module's attributes take several times as long
    if kind not in (nn.Linear, Conv1D) or "forward" in own:
        return None
    hooked = (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )
    weight, bias = map(own["_parameters"].get, ("weight", "bias"))
    if hooked or type(weight) is not nn.Parameter or weight.requires_grad:
        return None
    if "bias" not in own["_parameters"] or (bias is not None and bias.requires_grad):
        return None
    return weight if kind is nn.Linear else weight.t(), bias


def frozen_linear(x: Tensor, layers: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """The output (..., out) of each of some layers for the same x (..., in).

    All have one r. Only x, A and B_T get gradients, and those can be differentiated again.
    """
    A = layers[0].A if len(layers) == 1 else torch.cat([layer.A for layer in layers])
    frozen = [layer[:2] for layer in layers]
    # Function.apply in Python looks for torch.func, which nobody uses here (see `fused.applies`),
    # and takes as long as two launches; this is what it calls then.
    apply = super(torch.autograd.Function, _FrozenLinear).apply
    return cast(tuple[Tensor, ...], apply(x, frozen, A, *[layer.B_T for layer in layers]))


class _FrozenLinear(torch.autograd.Function):
    # Called so often that plain loops over few names are worth it.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, frozen: Sequence[Frozen], A: Tensor, *B_T: Tensor
    ) -> tuple[Tensor, ...]:
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        Ax = F.linear(rows, A)
        outputs = []
        for (weight, bias), its_Ax, its_B_T in zip(frozen, _cut(Ax, B_T), B_T, strict=True):
            y = F.linear(rows, weight, bias).addmm_(its_Ax, its_B_T)
            # Not a view, which nobody could change in place, as nn.ReLU(inplace=True) does.
            outputs.append(y if rows is x else y.resize_(*x.shape[:-1], y.shape[1]))
        ctx.save_for_backward(x, Ax, A, *B_T, *[weight for weight, _ in frozen])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, Ax, A, *both = ctx.saved_tensors
        n = len(grads)
        B_T, weights = both[:n], both[n:]
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled():  # create_graph=True; the Ax that is kept has no graph
            Ax = F.linear(rows, A)
        g = [grad if grad.dim() == 2 else grad.reshape(-1, grad.shape[-1]) for grad in grads]
        gAx = _gradient_of_Ax(g, B_T)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g[0].mm(weights[0])
            for its_g, weight in zip(g[1:], weights[1:], strict=True):
                dx.addmm_(its_g, weight)
            dx = dx.addmm_(gAx, A).view(x.shape)
        dB_T = [its_Ax.t().mm(its_g) for its_Ax, its_g in zip(_cut(Ax, B_T), g, strict=True)]
        return dx, None, gAx.t().mm(rows), *dB_T


def _cut(Ax: Tensor, B_T: Sequence[Tensor]) -> Sequence[Tensor]:
    """The columns (rows, r) that belong to each layer."""
    return (Ax,) if len(B_T) == 1 else Ax.chunk(len(B_T), dim=1)


def _gradient_of_Ax(g: Sequence[Tensor], B_T: Sequence[Tensor]) -> Tensor:
    """(rows, r of all layers): each layer's g B, side by side."""
    if len(g) == 1 or torch.is_grad_enabled():
        each = [F.linear(its_g, its_B_T) for its_g, its_B_T in zip(g, B_T, strict=True)]
        return each[0] if len(each) == 1 else torch.cat(each, dim=1)
    gAx = g[0].new_empty(len(g[0]), len(g) * len(B_T[0]))
    for its_part, its_g, its_B_T in zip(_cut(gAx, B_T), g, B_T, strict=True):
        torch.mm(its_g, its_B_T.t(), out=its_part)
    return gAx
