"""The admixture against a loop over sub-vectors in float64, and against its own differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vblora_lab import admixture as ad


def mixed_by_hand(logits, bank, topk):
    """The formula, one sub-vector at a time, in Python floats."""
    result = []
    for row in logits.reshape(-1, logits.shape[-1]).tolist():
        chosen = sorted(range(len(row)), key=lambda i: -row[i])[:topk]
        shares = [math.exp(row[i]) for i in chosen]
        vector = [0.0] * bank.shape[1]
        for i, share in zip(chosen, shares, strict=True):
            for j in range(bank.shape[1]):
                vector[j] += share / sum(shares) * bank[i, j].item()
        result.append(vector)
    return torch.tensor(result, dtype=torch.float64).reshape(*logits.shape[:-1], bank.shape[1])


@settings(max_examples=50, deadline=None)
@given(
    leading=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    num_vectors=st.integers(1, 9),
    length=st.integers(1, 5),
    data=st.data(),
)
def test_any_leading_shape_gives_the_formula(leading, num_vectors, length, data):
    topk = data.draw(st.integers(1, num_vectors))
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*leading, num_vectors, generator=generator, dtype=torch.float64)
    bank = torch.randn(num_vectors, length, generator=generator, dtype=torch.float64)
    mixed = ad.admixture(logits, bank, topk)
    assert mixed.shape == (*leading, length)
    torch.testing.assert_close(mixed, mixed_by_hand(logits, bank, topk), rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(r=st.integers(1, 4), tiles=st.integers(1, 4), length=st.integers(1, 4))
def test_matrices_are_cut_as_the_paper_says(r, tiles, length):
    """Tile t of row i of A is sub-vector (i, t); tile t of column i of B is sub-vector (t, i)."""
    A = ad.rows_of_A(torch.arange(float(r * tiles * length)).reshape(r, tiles, length))
    B = ad.columns_of_B(torch.arange(float(r * tiles * length)).reshape(tiles, r, length))
    assert A.shape == (r, tiles * length)
    assert B.shape == (tiles * length, r)
    for i in range(r):
        for t in range(tiles):
            start = (i * tiles + t) * length
            assert A[i, t * length : (t + 1) * length].tolist() == list(
                range(start, start + length)
            )
            start = (t * r + i) * length
            assert B[t * length : (t + 1) * length, i].tolist() == list(
                range(start, start + length)
            )


@pytest.mark.parametrize("topk", [1, 2, 5])
def test_gradients_agree_with_finite_differences(topk):
    # Logits far enough apart that a small step never changes the choice.
    logits = torch.stack([torch.randperm(5) for _ in range(6)]).reshape(2, 3, 5).double() / 3
    logits.requires_grad_()
    bank = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, b: ad.admixture(s, b, topk), (logits, bank))

    loss = ad.admixture(logits, bank, topk).pow(3).sum()
    loss.backward()
    step = 1e-6
    for place in [(0, 0, 0), (1, 2, 3)]:
        moved = logits.detach().clone()
        moved[place] += step
        upper = ad.admixture(moved, bank, topk).pow(3).sum()
        moved[place] -= 2 * step
        lower = ad.admixture(moved, bank, topk).pow(3).sum()
        difference = ((upper - lower) / (2 * step)).item()
        assert logits.grad[place].item() == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_only_the_chosen_logits_and_the_bank_learn():
    logits = torch.randn(7, 10, requires_grad=True)
    bank = torch.randn(10, 4, requires_grad=True)
    indices, _ = ad.choose(logits, 3)
    ad.admixture(logits, bank, 3).pow(2).sum().backward()
    learned = logits.grad != 0
    assert learned.sum() == 7 * 3
    assert learned.gather(1, indices).all()
    used = torch.zeros(10, dtype=torch.bool)
    used[indices.flatten()] = True
    assert torch.equal((bank.grad != 0).any(1), used)


def test_the_best_vector_comes_first_and_weights_sum_to_one():
    logits = torch.randn(20, 9)
    indices, weights = ad.choose(logits, 4)
    assert torch.equal(indices[:, 0], logits.argmax(-1))
    assert (weights.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_dtype_keeps_itself(dtype):
    logits, bank = torch.randn(3, 2, 8, dtype=dtype), torch.randn(8, 4, dtype=dtype)
    mixed = ad.admixture(logits, bank, 2)
    assert mixed.dtype == dtype
    tolerance = {torch.bfloat16: 0.03, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    exact = mixed_by_hand(logits, bank, 2)
    torch.testing.assert_close(mixed.double(), exact, rtol=tolerance, atol=tolerance)


def test_mixing_at_once_equals_mixing_one_by_one():
    """What pooling all layers in one call rests on."""
    bank = torch.randn(8, 4)
    parts = [torch.randn(3, 8), torch.randn(5, 8)]
    at_once = ad.admixture(torch.cat(parts), bank, 2)
    one_by_one = torch.cat([ad.admixture(part, bank, 2) for part in parts])
    assert torch.equal(at_once, one_by_one)
