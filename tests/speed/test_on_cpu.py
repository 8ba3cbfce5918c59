"""What mixing does otherwise on a CPU gives the same choices."""

import pytest
import torch

from vblora_lab.admixture import choose
from vblora_lab.speed import mixing


@pytest.mark.parametrize(("vectors", "topk"), [(192, 4), (90, 2), (100, 3), (256, 2), (20, 4)])
def test_a_choice_from_longer_rows_is_the_same(vectors, topk):
    logits = torch.randn(50, vectors, generator=torch.Generator().manual_seed(0))
    logits[0] = -torch.inf
    logits[0, [5, 7, 9, 11][:topk]] = torch.tensor([1.0, 3.0, 2.0, -1e4][:topk])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    indices, weights = mixing._choose(ours, topk)
    expected, its_weights = choose(theirs, topk)
    assert torch.equal(indices, expected) and torch.equal(weights, its_weights)
    for w in (weights, its_weights):
        (w * torch.arange(w.numel()).view_as(w)).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
