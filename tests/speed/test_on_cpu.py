"""What is done otherwise on a CPU: the numbers of the formula, in float64 and by autograd."""

import pytest
import torch
import torch.nn.functional as F

from vblora_lab.admixture import choose
from vblora_lab.speed import frozen_linear as module
from vblora_lab.speed import mixing
from vblora_lab.speed.frozen_linear import frozen_linear

r, ins, outs = 3, 16, 24
FOLDED, THIN_FIRST, LAUNCHED = "folded", "thin first", "as on a GPU"


def numbers(rows, dtype):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, learns=True):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_(learns)

    wide = draw(r, 100)  # A and B_T are ranges of columns
    weight, bias = draw(outs, ins, learns=False), draw(outs, learns=False)
    return draw(rows, ins), weight, bias, wide[:, :ins], wide[:, 50 : 50 + outs], wide


def plain(x, weight, bias, A, B_T):
    return F.linear(x, weight, bias) + x @ A.T @ B_T


def found_by(call, rows, dtype, with_bias, doubly=False):
    x, weight, bias, A, B_T, wide = numbers(rows, dtype)
    y = call(x, weight, bias if with_bias else None, A, B_T)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
    first = torch.autograd.grad((weights * y**2).sum(), (x, wide), create_graph=doubly)
    if not doubly:
        return y.detach(), *first
    return torch.autograd.grad(sum((grad**2).sum() for grad in first), (x, wide))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "doubly"),
    [
        (torch.float64, False),
        (torch.float64, True),
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
    ],
)
@pytest.mark.parametrize("way", [FOLDED, THIN_FIRST, LAUNCHED])
def test_each_way_gives_output_and_gradients(way, dtype, with_bias, doubly, monkeypatch):
    rows = ins if way == FOLDED else ins - 1
    if way == LAUNCHED:
        monkeypatch.setattr(module, "thin_first", lambda x: False)
    x, weight, *_ = numbers(rows, dtype)
    is_half = dtype == torch.bfloat16
    assert module.worth_folding(x, weight) == (way == FOLDED and not is_half)
    expected = found_by(plain, rows, torch.float64, with_bias, doubly)
    for got, wanted in zip(
        found_by(frozen_linear, rows, dtype, with_bias, doubly), expected, strict=True
    ):
        off = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
        assert (got.double() - wanted).norm() <= off * wanted.norm()


@pytest.mark.parametrize(("vectors", "topk"), [(192, 4), (90, 2), (100, 3), (256, 2), (20, 4)])
def test_a_choice_from_longer_rows_is_the_same(vectors, topk):
    logits = torch.randn(50, vectors, generator=torch.Generator().manual_seed(0))
    logits[0] = -torch.inf
    logits[0, [5, 7, 9, 11][:topk]] = torch.tensor([1.0, 3.0, 2.0, -1e4][:topk])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    indices, weights = mixing._choose(ours, topk)
    expected, its_weights = choose(theirs, topk)
    assert torch.equal(indices, expected) and torch.equal(weights, its_weights)
    assert int(indices.max()) < vectors
    for w in (weights, its_weights):
        (w * torch.arange(w.numel()).view_as(w)).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
