"""Frozen linear layers and their low-rank updates in one call: y = x W^T + b + (x A^T) B^T.

The sum of what PyTorch's own operations compute, forward and backward, in one node of the graph
instead of five a layer. On a fast GPU most of a small layer's time is Python and autograd preparing
the next kernel, so fewer nodes and fewer kernels are less time.

Layers that get the same x (q, k and v; gate and up) are one node too, and x is read once for all of
them. Gradients, with g = dL/dy of each layer and no gradient of W and b:

    gAx = g B      dx = sum of g W + gAx A      dA = gAx^T x      dB^T = (x A^T)^T g

The products with A and B are those of `thin_products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from vblora_lab.speed.autograd import in_backward
from vblora_lab.speed.thin_products import IN_PYTORCH, thin_products

Frozen = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,)


class Adapted(NamedTuple):
    """A frozen layer and its update, in the dtype to compute in but for the weight."""

    weight: Tensor  # (out, in), as stored: it is cast where it is used, and the copy isn't kept
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


def frozen_weight_for(dtype: torch.dtype, layer: nn.Module, casts: bool) -> Frozen | None:
    """The same, if it is of a dtype or is cast to it: the bias here, the weight where it is used.

    Args:
        dtype: to compute in.
        layer: any.
        casts: whether autocast is on, which leaves float64 as it is.
    """
    frozen = frozen_weight(layer)
    if frozen is None or frozen[0].dtype == dtype:
        return frozen
    weight, bias = frozen
    if not casts or weight.dtype == torch.float64:
        return None
    return weight, None if bias is None else bias.to(dtype)


def frozen_linear(x: Tensor, layer: Adapted) -> Tensor:
    """The output (..., out) of a layer for x (..., in), in the dtype of x, A and B_T.

    Only they get gradients, and those can be differentiated again.

    Raises:
        RuntimeError: in the backward pass, if the weight was changed since.
    """
    weight, bias, A, B_T = layer
    return _outputs(x, (weight,), (bias,), (A, B_T))[0]


def frozen_linears(x: Tensor, layers: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """The same of several layers for one x (..., in). All have the same r."""
    weights, biases, A, B_T = zip(*layers, strict=True)
    return _outputs(x, weights, biases, (*A, *B_T))


def _outputs(
    x: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    matrices: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    later: list[Tensor] = []
    ys = cast(tuple[Tensor, ...], _node(x, weights, biases, later, *matrices))
    if later:
        rows, *sums = later
        _add_products(sums, rows, weights)
    return ys


def _add_products(ys: Sequence[Tensor], rows: Tensor, weights: Sequence[Tensor]) -> None:
    """Add x W^T to each update: a large product adds to what is there at no cost."""
    for y, weight in zip(ys, weights, strict=True):
        y.addmm_(rows, _in(rows.dtype, weight).t())


class _FrozenLinears(torch.autograd.Function):
    """The node of some layers.

    Called again by gradient checkpointing, it has the gradients of all products but leaves the
    large ones to its caller, with `later`: x and the outputs as rows, of the same memory.
    Checkpointing stops at the last tensor that a node keeps, so it stops before those of a part's
    last layers, as it does in the frozen base.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: tuple[Tensor, ...],
        biases: tuple[Tensor | None, ...],
        later: list[Tensor],
        *matrices: Tensor,
    ) -> tuple[Tensor, ...]:
        n, rows = len(weights), x.reshape(-1, x.shape[-1])  # apart from x, for autograd
        A, B_T = matrices[:n], matrices[n:]
        thin = thin_products(rows, A, B_T, biases)
        Ax, stacked, ys = thin.down_and_up(rows, A, B_T, biases)
        ctx.save_for_backward(x, Ax, stacked)
        # These live without the node, so they needn't go through checkpointing's hooks, which
        # Python calls for each saved tensor of each pass.
        ctx.held = thin, weights, matrices, _versions(weights)
        if in_backward():
            later += [rows, *[y.data for y in ys]]
        else:
            _add_products(ys, rows, weights)
        return tuple([_shaped(y, x) for y in ys])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n = len(grads)
        x, Ax, stacked = ctx.saved_tensors
        thin, weights, matrices, versions = ctx.held
        if _versions(weights) != versions:
            raise RuntimeError(
                "a frozen weight was changed between the forward pass and its backward pass, as by "
                "merging an adapter: its gradients would be wrong. Run the forward pass again."
            )
        A, B_T = matrices[:n], matrices[n:]
        rows, g = _rows(x), [_rows(grad).contiguous() for grad in grads]
        if torch.is_grad_enabled():  # create_graph=True; what is kept or fused has no graph
            thin, stacked = IN_PYTORCH, torch.cat(A)
            Ax = F.linear(rows, stacked)
        gAx, dx = thin.back_through(g, A, stacked, B_T)
        if ctx.needs_input_grad[0]:
            for its_g, weight in zip(g, weights, strict=True):
                dx.addmm_(its_g, _in(its_g.dtype, weight))
        dA, dB_T = thin.gradients(rows, g, Ax, gAx)
        dx = dx.view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, *dA, *dB_T


def _versions(weights: Sequence[Tensor]) -> list[int | None]:
    """Tensors made under inference_mode count none."""
    return [None if weight.is_inference() else weight._version for weight in weights]


# Function.apply in Python looks for torch.func, which nobody uses here (see `kernels.applies`), and
# takes as long as two launches; this is what it calls then.
_node = cast(Any, super(torch.autograd.Function, _FrozenLinears)).apply


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    """Rows in the shape of x: not as a view, which nn.ReLU(inplace=True) could not change."""
    return y if x.dim() == 2 else y.resize_(*x.shape[:-1], y.shape[1])
