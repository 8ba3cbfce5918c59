"""What notebook 03 defines: the ways to mix, and the fit."""

import pytest
import torch

from vblora_lab.admixture import admixture

from .notebook import definitions


@pytest.fixture(scope="module")
def defined():
    return definitions("03")


@pytest.fixture
def logits_and_bank():
    torch.manual_seed(0)
    return torch.randn(4, 6).double().requires_grad_(), torch.randn(6, 5).double()


def test_all_vectors_is_top_k_with_k_as_large_as_the_bank(defined, logits_and_bank):
    logits, bank = logits_and_bank
    mixed = defined["all_vectors"](logits, bank, 2, noise=True)
    torch.testing.assert_close(mixed, admixture(logits, bank, 6))


def test_gumbel_softmax_takes_one_vector_and_tells_all_logits(defined, logits_and_bank):
    logits, bank = logits_and_bank
    mixed = defined["gumbel_softmax"](logits, bank, 2, noise=True)
    distances = torch.cdist(mixed.detach(), bank).min(dim=1).values
    torch.testing.assert_close(distances, torch.zeros(4).double(), atol=1e-6, rtol=0)
    mixed.square().sum().backward()
    assert (logits.grad != 0).all()
    plain = defined["gumbel_softmax"](logits, bank, 2, noise=False)
    torch.testing.assert_close(plain, bank[logits.argmax(-1)])


def test_noise_lets_others_in_and_goes_when_it_is_switched_off(defined, logits_and_bank):
    _, bank = logits_and_bank
    flat = torch.zeros(200, 6).double()
    noisy = defined["noisy_top_k"](flat, bank, 2, noise=True)
    assert len(noisy.unique(dim=0)) > 15
    still = defined["noisy_top_k"](flat, bank, 2, noise=False)
    torch.testing.assert_close(still, admixture(flat, bank, 2))


def test_noise_in_logits_only_reaches_k_of_them(defined, logits_and_bank):
    logits, bank = logits_and_bank
    defined["noisy_top_k"](logits, bank, 2, noise=True).square().sum().backward()
    assert torch.count_nonzero(logits.grad) == 8


def test_fit_learns_and_leaves_its_start_alone(defined):
    torch.manual_seed(0)
    one = defined["start"](5, h=8, b=8, r=2, size=16)
    before = [t.clone() for t in one]
    losses, *trained = defined["fit"](*one, defined["top"](2), steps=60)
    assert losses[-1] < 0.9 * losses[0]
    for old, now, new in zip(before, one, trained, strict=False):
        assert torch.equal(old, now)
        assert not torch.equal(old, new)
