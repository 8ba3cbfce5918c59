"""The hidden tests of chapter 11: what is wrong with the pieces that a reader builds, and where.

Those of a whole model and of its file are in `building_models`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vblora_lab.course.exercise import Open, Wrong, called, check_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

H, B, R, K = 6, 4, 3, 2  # bank vectors, their length, rank, choices


def seeded(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same numbers each time, and the notebook's own random numbers as if nothing was drawn."""

    @functools.wraps(check)
    def checked(answer: Any) -> None:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(answer)

    return checked


# --- the admixture


@seeded
def check_admixture(answer: Any) -> None:
    import torch

    from vblora_lab.admixture import admixture

    for shape, k in (((5,), 2), ((), 2), ((3, 5), 2), ((5,), 1), ((5,), 7)):
        logits, bank = torch.randn(*shape, 7), torch.randn(7, B)
        try:
            expected, mistakes = admixture(logits, bank, k), _mixed_otherwise(logits, bank, k)
            check_tensor(called(answer, logits, bank, k), expected, mistakes)
        except Wrong as wrong:
            raise Wrong(f"for logits of shape {(*shape, 7)} and k = {k}: {wrong}") from None
    _check_gradients(answer)


def _mixed_otherwise(logits: Tensor, bank: Tensor, k: int) -> dict[str, Tensor]:
    chosen, indices = logits.topk(k, dim=-1)
    smallest, of_smallest = logits.topk(k, dim=-1, largest=False)
    vectors = bank[indices]
    before = logits.softmax(-1).gather(-1, indices)
    if k in (1, logits.shape[-1]):  # then several of these give the right numbers
        return {}
    mistakes = {
        "the weights don't sum to 1. Take the softmax of the k chosen logits, not of all.": (
            (before.unsqueeze(-1) * vectors).sum(-2)
        ),
        "these are the k smallest logits; choose the largest.": (
            (smallest.softmax(-1).unsqueeze(-1) * bank[of_smallest]).sum(-2)
        ),
        "the logits themselves are the weights here; their softmax should be.": (
            (chosen.unsqueeze(-1) * vectors).sum(-2)
        ),
        "all chosen vectors count alike; weigh each by its softmax.": vectors.mean(-2),
        "the chosen vectors are added without weights.": vectors.sum(-2),
    }
    if k < logits.shape[-1]:
        mistakes["all bank vectors are mixed; take those with the k largest logits alone."] = (
            logits.softmax(-1) @ bank
        )
    if logits.ndim > 1:
        across = chosen.softmax(0)
        mistakes[
            "the softmax runs over the sub-vectors; over the k choices, which are the last axis."
        ] = (across.unsqueeze(-1) * vectors).sum(-2)
    return mistakes


def _check_gradients(answer: Any) -> None:
    import torch

    from vblora_lab.admixture import admixture

    inputs = torch.randn(5, 7, requires_grad=True), torch.randn(7, B, requires_grad=True)
    weights = torch.randn(5, B)
    result = called(answer, *inputs, K)
    if not result.requires_grad:
        raise Wrong(
            "the numbers are right, but no gradient can flow back: detach(), .data, no_grad() or "
            "torch.tensor(...) cut it off somewhere."
        )
    ours = torch.autograd.grad((result * weights).sum(), inputs, allow_unused=True)
    expected = torch.autograd.grad((admixture(*inputs, K) * weights).sum(), inputs)
    for name, mine, theirs in zip(("logits", "bank"), ours, expected, strict=True):
        if mine is None or not torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5):
            raise Wrong(
                f"the numbers are right, but the {name} get another gradient than they should."
            )


# --- the layer


@seeded
def check_layer(answer: Any) -> None:
    import torch
    from torch import nn

    base, bank = nn.Linear(8, 12), nn.Parameter(torch.randn(H, B))
    layer = called(answer, base, bank, R, K)
    if not isinstance(layer, nn.Module):
        raise Wrong(f"this gives a {type(layer).__name__}; the layer is an nn.Module.")
    if not list(layer.children()) and not list(layer.parameters()):
        raise Open("the layer holds nothing yet: write its __init__ and its forward.")
    _check_logits(layer)
    _check_bank(layer, bank)
    _check_output(layer, base, bank)


def _check_output(layer: Any, base: nn.Linear, bank: nn.Parameter) -> None:
    import torch

    x = torch.randn(2, 5, 8)
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                for logits in (layer.logits_A, layer.logits_B):
                    logits.copy_(torch.randn_like(logits))
        expected, mistakes = _outputs(layer, base, bank, x)
        try:
            result = called(layer, x)
            check_tensor(result, expected, mistakes)
        except Wrong as wrong:
            if moved:
                raise Wrong(
                    "the output doesn't follow when the logits change: mix A and B in forward, at "
                    "each call, not once in __init__."
                ) from None
            raise Wrong(f"the output for x of shape (2, 5, 8): {wrong}") from None
    if result.requires_grad:
        result.square().sum().backward()
    trained = {"bank": bank, "logits_A": layer.logits_A, "logits_B": layer.logits_B}
    for name, tensor in trained.items():
        if tensor.grad is None or not tensor.grad.any():
            raise Wrong(f"the output is right, but no gradient reaches {name}.")


def _check_logits(layer: Any) -> None:
    from torch import nn

    shapes = {"logits_A": (R, 8 // B, H), "logits_B": (12 // B, R, H)}
    words = {"logits_A": "(r, in / b, h)", "logits_B": "(out / b, r, h)"}
    for name, shape in shapes.items():
        logits = getattr(layer, name, None)
        if logits is None:
            raise Wrong(f"the layer has no {name}; it needs one of shape {words[name]}.")
        if not isinstance(logits, nn.Parameter):
            raise Wrong(
                f"{name} is a {type(logits).__name__}, which no optimizer would find; make it an "
                "nn.Parameter."
            )
        if tuple(logits.shape) != shape:
            raise Wrong(
                f"{name} has shape {tuple(logits.shape)}; for 8 inputs, 12 outputs, r = {R} and a "
                f"bank of {H} vectors of length {B} it is {words[name]} = {shape}."
            )
        if bool((logits == logits.flatten()[0]).all()):
            raise Wrong(
                f"all of {name} are equal, so that all sub-vectors begin with one choice; draw "
                "them at random."
            )


def _check_bank(layer: Any, bank: nn.Parameter) -> None:
    if getattr(layer, "bank", None) is None:
        raise Wrong("the layer has no bank; keep the one that it is given as self.bank.")
    if layer.bank is not bank:
        raise Wrong(
            "self.bank is a copy: another object with the same numbers. Keep the very object, or "
            "each layer would train a bank of its own."
        )


def _outputs(
    layer: Any, base: nn.Linear, bank: Tensor, x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The right output, and what known mistakes give."""
    import torch

    from vblora_lab.admixture import admixture, low_rank_matrices

    with torch.no_grad():
        A, B_ = low_rank_matrices(layer.logits_A, layer.logits_B, bank, K)
        torn = admixture(layer.logits_B, bank, K).reshape(B_.shape)
        update, frozen = x @ A.T @ B_.T, base(x)
        return frozen + update, {
            "this is base(x) alone; B A x is missing.": frozen,
            "this is B A x alone; base(x) is missing.": update,
            "B is torn apart: its sub-vectors lie in columns. Swap the axes of ranks and length "
            "before you join tiles and length.": frozen + x @ A.T @ torn.T,
            "B A x is added twice, or scaled by 2.": frozen + 2 * update,
            "B A x is divided by r; VB-LoRA doesn't scale it.": frozen + update / R,
            "the bias of base is missing.": frozen + update - base.bias,
        }


# --- the shared bank


@seeded
def check_shared(answer: Any) -> None:
    import torch
    from torch import nn

    linears = [nn.Linear(8, 12), nn.Linear(8, 4)]
    layers = called(answer, linears, H, B, R, K)
    if not isinstance(layers, list | tuple) or len(layers) != len(linears):
        what = (
            f"{len(layers)} of them" if isinstance(layers, list | tuple) else type(layers).__name__
        )
        raise Wrong(
            f"give a list with one of your layers for each of the 2 linear ones, not {what}."
        )
    for layer, linear in zip(layers, linears, strict=True):
        if getattr(layer, "base", None) is not linear:
            raise Wrong("a layer's base is not the linear layer that was given, in the same order.")
        if linear.weight.requires_grad or linear.bias.requires_grad:
            raise Wrong("a base is still trained; freeze it: linear.requires_grad_(False).")
    first, second = (getattr(layer, "bank", None) for layer in layers)
    _check_new_bank(first)
    if second is not first:
        raise Wrong(
            "each layer has a bank of its own. Make one, before you make the layers, and give all "
            "of them the same object."
        )
    x = torch.randn(2, 8)
    before, loss = (called(layer, x) for layer in reversed(layers))
    if not all(
        isinstance(output, torch.Tensor) and output.requires_grad for output in (before, loss)
    ):
        raise Wrong("the layers don't give tensors through which gradients flow: are they yours?")
    loss.square().sum().backward()
    torch.optim.SGD(layers[0].parameters(), lr=1.0).step()
    if torch.allclose(called(layers[1], x), before):
        raise Wrong("a step for the first layer should change the second too, and doesn't.")


def _check_new_bank(bank: Any) -> None:
    from torch import nn

    if not isinstance(bank, nn.Parameter):
        raise Wrong(f"the bank is a {type(bank).__name__}; make it an nn.Parameter.")
    if not bank.requires_grad:
        raise Wrong("the bank is frozen; it is what VB-LoRA trains.")
    if tuple(bank.shape) != (H, B):
        raise Wrong(f"the bank has shape {tuple(bank.shape)}; h vectors of length b are {(H, B)}.")
    if not bank.any():
        raise Wrong(
            "the bank is all zeros. A and B are too then, and so is every gradient: A's has B as a "
            "factor, and B's has A."
        )
    low, high = (float(end) for end in bank.detach().aminmax())
    if max(-low, high) > 0.02 or low >= 0 or high < 0.01:
        raise Wrong(
            f"draw the bank evenly between -0.02 and 0.02; this one goes from {low:.3g} to "
            f"{high:.3g}."
        )
