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
    parameters = own["_parameters"]
    weight = parameters.get("weight")
    if hooked or type(weight) is not nn.Parameter or weight.requires_grad:
        return None
    if "bias" not in parameters:
        return None
    bias = parameters["bias"]
    if bias is not None and bias.requires_grad:
        return None
    return weight if kind is nn.Linear else weight.t(), bias


def frozen_linear(x: Tensor, layer: Adapted) -> Tensor:
    """The output (..., out) of a layer for x (..., in), of one dtype.

    Only x, A and B_T get gradients, and those can be differentiated again.
    """
    return cast(Tensor, _one(x, *layer))


def frozen_linears(x: Tensor, layers: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """The same of several layers for one x (..., in). All have the same r."""
    weights, biases, A, B_T = zip(*layers, strict=True)
    return cast(tuple[Tensor, ...], _several(x, weights, biases, *A, *B_T))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B_T: Tensor
    ) -> Tensor:
        rows = _rows(x)
        Ax = F.linear(rows, A)
        ctx.save_for_backward(x, Ax, weight, A, B_T)
        return _shaped(_sum(rows, weight, bias, Ax, B_T), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, Ax, weight, A, B_T = ctx.saved_tensors
        rows, g = _rows(x), _rows(grad)
        if torch.is_grad_enabled():  # create_graph=True; the Ax that is kept has no graph
            Ax = F.linear(rows, A)
        gAx = F.linear(g, B_T)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = gAx.mm(A).addmm_(g, weight).view(x.shape)
        return dx, None, None, gAx.t().mm(rows), Ax.t().mm(g)


class _FrozenLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        *matrices: Tensor,
    ) -> tuple[Tensor, ...]:
        n = len(weights)
        rows, A, B_T = _rows(x), torch.cat(matrices[:n]), matrices[n:]
        Ax = F.linear(rows, A)
        ctx.save_for_backward(x, Ax, A, *weights, *matrices)
        layers = zip(weights, biases, Ax.chunk(n, dim=1), B_T, strict=True)
        return tuple([_shaped(_sum(rows, *layer), x) for layer in layers])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n = len(grads)
        x, Ax, A, *others = ctx.saved_tensors
        weights, B_T = others[:n], others[2 * n :]
        rows, g = _rows(x), [_rows(grad) for grad in grads]
        if torch.is_grad_enabled():
            A = torch.cat(others[n : 2 * n])
            Ax = F.linear(rows, A)
            gAx = torch.cat([F.linear(*each) for each in zip(g, B_T, strict=True)], dim=1)
        else:
            gAx = torch.empty_like(Ax)
            for part, its_g, b in zip(gAx.chunk(n, dim=1), g, B_T, strict=True):
                torch.mm(its_g, b.t(), out=part)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = gAx.mm(A)
            for its_g, weight in zip(g, weights, strict=True):
                dx.addmm_(its_g, weight)
            dx = dx.view(x.shape)
        dA = gAx.t().mm(rows).chunk(n)
        dB_T = [part.t().mm(its_g) for part, its_g in zip(Ax.chunk(n, dim=1), g, strict=True)]
        return dx, None, None, *dA, *dB_T


# Function.apply in Python looks for torch.func, which nobody uses here (see `kernels.applies`), and
# takes as long as two launches; these are what it calls then.
_one = cast(Any, super(torch.autograd.Function, _FrozenLinear)).apply
_several = cast(Any, super(torch.autograd.Function, _FrozenLinears)).apply


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _sum(rows: Tensor, weight: Tensor, bias: Tensor | None, Ax: Tensor, B_T: Tensor) -> Tensor:
    """The update first: the large product adds to what is there at no cost, a thin one reads it."""
    y = Ax.mm(B_T) if bias is None else torch.addmm(bias, Ax, B_T)
    return y.addmm_(rows, weight.t())


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    """Rows in the shape of x: not as a view, which nn.ReLU(inplace=True) could not change."""
    return y if x.dim() == 2 else y.resize_(*x.shape[:-1], y.shape[1])
