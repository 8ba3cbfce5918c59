"""Frozen layers and their updates as one node: the same numbers as PyTorch's own operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.speed.interpreted import CUDA
from vblora_lab.speed.frozen_linear import Adapted, frozen_linear, frozen_linears, frozen_weight

DEVICE = "cuda" if CUDA else "cpu"


def drawn(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def layers_of(sizes, in_features=6, r=2, dtype=torch.float64):
    return [
        Adapted(
            drawn(out, in_features, dtype=dtype, seed=i),
            drawn(out, dtype=dtype, seed=i) if i != 1 else None,
            drawn(r, in_features, dtype=dtype, seed=10 + i).requires_grad_(),
            drawn(r, out, dtype=dtype, seed=20 + i).requires_grad_(),
        )
        for i, out in enumerate(sizes)
    ]


def computed(x, layers):
    return frozen_linears(x, layers) if len(layers) > 1 else (frozen_linear(x, layers[0]),)


def plain(x, layers):
    return tuple(F.linear(x, w, b) + F.linear(F.linear(x, A), B_T.t()) for w, b, A, B_T in layers)


def learned(x, layers):
    return [x, *(t for layer in layers for t in (layer.A, layer.B_T))]


@pytest.mark.parametrize("sizes", [(5,), (5, 4), (5, 3, 7)])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 2, 3, 6)])
def test_outputs_and_gradients(sizes, shape):
    layers, x = layers_of(sizes), drawn(*shape).requires_grad_()
    got, expected = computed(x, layers), plain(x, layers)
    slopes = [drawn(*y.shape, seed=3) for y in expected]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    both = [torch.autograd.grad(ys, learned(x, layers), slopes) for ys in (got, expected)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


def test_an_input_that_is_no_leaf_lies_crosswise_or_needs_no_gradient():
    layers = layers_of((5, 4))
    for x in (drawn(3, 2, 6).transpose(0, 1), drawn(2, 6, 3).transpose(1, 2)):
        got, expected = computed(x, layers), plain(x, layers)
        slopes = [drawn(*y.shape[::-1], seed=3).permute(2, 1, 0) for y in expected]
        both = [torch.autograd.grad(ys, learned(x, layers)[1:], slopes) for ys in (got, expected)]
        for one, other in zip((*got, *both[0]), (*expected, *both[1]), strict=True):
            torch.testing.assert_close(one, other)


def test_an_output_that_nobody_uses():
    layers, x = layers_of((5, 4)), drawn(3, 6).requires_grad_()
    first, expected = computed(x, layers)[0], plain(x, layers[:1])[0]
    got = torch.autograd.grad(first.sum(), learned(x, layers))
    for one, other in zip(
        got, torch.autograd.grad(expected.sum(), learned(x, layers[:1])), strict=False
    ):
        torch.testing.assert_close(one, other)
    assert not any(gradient.any() for gradient in got[3:])  # of the other layer


@pytest.mark.parametrize("sizes", [(5,), (3, 4)])
def test_gradients_can_be_differentiated_again(sizes):
    layers, x = layers_of(sizes), drawn(2, 2, 6).requires_grad_()

    def outputs(x, *matrices):
        pairs = zip(layers, matrices[::2], matrices[1::2], strict=True)
        return computed(x, [Adapted(*layer[:2], A, B_T) for layer, A, B_T in pairs])

    assert torch.autograd.gradgradcheck(outputs, learned(x, layers))


@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 6)])
def test_an_output_can_be_changed_in_place(shape):
    """As by nn.ReLU(inplace=True) behind an adapted layer."""
    layers, x = layers_of((5, 4)), drawn(*shape).requires_grad_()
    both = [
        torch.autograd.grad(sum(relu(y).sum() for y in ys), learned(x, layers))
        for relu, ys in ((F.relu_, computed(x, layers)), (F.relu, plain(x, layers)))
    ]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float64_as_operations_one_by_one(dtype):
    halves = layers_of((48, 32), in_features=64, r=8, dtype=dtype)
    exact = [Adapted(*(None if t is None else t.double() for t in layer)) for layer in halves]
    x = drawn(96, 64, dtype=dtype)
    expected = plain(x.double(), exact)
    errors = [
        [(y.double() - e).norm() / e.norm() for y, e in zip(ys, expected, strict=True)]
        for ys in (computed(x, halves), plain(x, halves))
    ]
    for ours, one_by_one in zip(*errors, strict=True):
        assert ours < 1.2 * one_by_one + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_in_float32_is_cast_where_it_is_used(dtype):
    halves, x = layers_of((5, 4), dtype=dtype), drawn(3, 6, dtype=dtype).requires_grad_()
    halves[0] = halves[0]._replace(weight=drawn(5, 6, dtype=torch.float32))
    cast = [layer._replace(weight=layer.weight.to(dtype)) for layer in halves]
    stored = [layer._replace(weight=layer.weight.float()) for layer in halves[1:]]
    both = []
    for layers in ([halves[0], *stored], cast):
        ys = computed(x, layers)
        slopes = [drawn(*y.shape, dtype=dtype, seed=3) for y in ys]
        both.append([*ys, *torch.autograd.grad(ys, learned(x, layers), slopes)])
    assert all(map(torch.equal, *both))
    assert all(y.dtype == dtype for y in both[0])


def test_a_weight_that_changes_before_the_backward_pass_is_told():
    layers, x = layers_of((5, 4)), drawn(3, 6).requires_grad_()
    ys = computed(x, layers)
    layers[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed between the forward pass and its backward"):
        torch.autograd.grad(sum(y.sum() for y in ys), x)


@pytest.mark.parametrize("sizes", [(5,), (5, 4, 3)])
def test_what_a_node_keeps_is_no_more_for_more_layers(sizes):
    """Checkpointing has a function in Python called for each tensor, in each pass."""
    kept, layers = [], layers_of(sizes)
    x = drawn(3, 6).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        computed(x, layers)
    assert len(kept) == 3  # the input, A x, and the A's as one


def test_a_second_backward_pass_is_refused_as_everywhere():
    x = drawn(3, 6).requires_grad_()
    y = computed(x, layers_of((5,)))[0].sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_which_layers_are_no_more_than_their_weight():
    linear = nn.Linear(3, 2).requires_grad_(False)
    assert frozen_weight(linear) == (linear.weight, linear.bias)
    without = nn.Linear(3, 2, bias=False).requires_grad_(False)
    assert frozen_weight(without) == (without.weight, None)
    crosswise = Conv1D(2, 3).requires_grad_(False)  # out, in; it stores (in, out)
    assert frozen_weight(crosswise)[0].shape == (2, 3)


class Sub(nn.Linear):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.requires_grad_(),
        lambda layer: layer.bias.requires_grad_(),
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
        lambda layer: setattr(layer, "forward", lambda x: x),
        lambda layer: setattr(layer, "__class__", Sub),
        lambda layer: layer._parameters.pop("weight"),
        lambda layer: (layer._parameters.pop("bias"), setattr(layer, "bias", torch.ones(2))),
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
    ],
)
def test_which_are_not(change):
    layer = nn.Linear(3, 2).requires_grad_(False)
    change(layer)
    assert frozen_weight(layer) is None
