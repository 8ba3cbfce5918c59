"""The steps of fitting a bank, each against a slow and obvious way to do it."""

from itertools import combinations

import torch

from vblora_lab.convert.factors import BALANCES, SubVectorProblem, _squared_difference
from vblora_lab.convert.fitting import Fit, best_bank, choose_for, fit_bank


def data(count=40, length=5, num_vectors=7):
    return torch.randn(count, length), 2 * torch.randn(num_vectors, length)


def squared_errors(targets, bank, indices, weights):
    return (targets - torch.einsum("nk,nkb->nb", weights, bank[indices])).square().sum(-1)


def test_for_two_vectors_the_choice_is_the_best_there_is():
    targets, bank = data()
    indices, weights = choose_for(targets, bank, 2)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(targets)))
    best = torch.full((len(targets),), torch.inf)
    for i, j in combinations(range(len(bank)), 2):
        for share in torch.linspace(0, 1, 201):
            mixed = share * bank[i] + (1 - share) * bank[j]
            best = torch.minimum(best, (targets - mixed).square().sum(-1))
    # All seven vectors are starts, so every pair is looked at; the grid is a little coarse.
    found = squared_errors(targets, bank, indices, weights)
    assert (found <= best + 1e-5).all()
    assert (found >= best - 1e-2).all()


def test_weights_of_more_vectors_are_optimal():
    """At the optimum no shift of weight from a chosen vector to another one helps."""
    targets, bank = data()
    indices, weights = choose_for(targets, bank, 4)
    assert all(len(set(row)) == 4 for row in indices.tolist())
    before = squared_errors(targets, bank, indices, weights)
    for i in range(4):
        for j in range(4):
            shifted = weights.clone()
            step = torch.minimum(weights[:, i], torch.tensor(0.02))
            shifted[:, i] -= step
            shifted[:, j] += step
            assert (squared_errors(targets, bank, indices, shifted) >= before - 1e-3).all()


def test_the_bank_is_the_least_squares_solution():
    targets, bank = data(count=60)
    importance = torch.rand(60) + 0.1
    indices, weights = choose_for(targets, bank, 2)
    dense = torch.zeros(60, 7).scatter(1, indices, weights)
    used = dense.sum(0) > 0
    root = importance.sqrt()[:, None]
    expected = torch.linalg.lstsq(root * dense[:, used], root * targets).solution
    found = best_bank(targets, importance, indices, weights, bank)
    torch.testing.assert_close(found[used], expected, rtol=1e-3, atol=1e-3)


def test_a_bank_is_found_again():
    generator = torch.Generator().manual_seed(1)
    bank = torch.rand(16, 16, generator=generator) - 0.5
    logits = torch.randn(300, 16, generator=generator)
    chosen, indices = logits.topk(2)
    targets = torch.einsum("nk,nkb->nb", chosen.softmax(-1), bank[indices])
    targets = targets / targets.square().mean().sqrt()
    fit = fit_bank(targets, torch.ones(300), 16, 2, rounds=40, seed=0)
    assert (fit.sub_vectors() - targets).norm() < 1e-2 * targets.norm()
    # Few rounds, and no more attempts after they settle, aren't enough.
    first = fit_bank(targets, torch.ones(300), 16, 2, rounds=2, seed=0)
    assert (first.sub_vectors() - targets).norm() > 0.2 * targets.norm()


def factors():
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "wide": (random(3, 8), 0.2 * random(12, 3)),
        "narrow": (random(2, 12), 0.2 * random(4, 2)),
        "other": (random(3, 8), random(12, 3)),
    }


def test_balancing_and_splitting_change_no_update():
    for balance in BALANCES:
        problem = SubVectorProblem(factors(), balance, vector_length=4)
        for name, (A, B) in factors().items():
            balanced_A, balanced_B = problem.factors[name]
            assert balanced_A.shape[0] == balanced_B.shape[1] == 3
            torch.testing.assert_close(balanced_B @ balanced_A, B @ A, rtol=1e-4, atol=1e-5)
            if balance != "none":
                norms = balanced_A.norm(dim=1), balanced_B.norm(dim=0)
                torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-5)


def test_importance_is_what_an_error_of_a_sub_vector_costs():
    """Disturb one sub-vector at a time and look at the product of all matrices."""
    problem = SubVectorProblem(factors(), "none", vector_length=4)
    bank = problem.targets  # each sub-vector is a bank vector of its own
    indices = torch.arange(len(bank)).unsqueeze(1)
    weights = torch.ones_like(indices, dtype=bank.dtype)
    assert problem.error(Fit(bank, indices, weights)) < 1e-10
    step = torch.randn(4)
    costs = []
    for n in range(len(bank)):
        disturbed = bank.clone()
        disturbed[n] += step
        costs.append(problem.error(Fit(disturbed, indices, weights)))
    costs = torch.tensor(costs)
    torch.testing.assert_close(costs / costs.mean(), problem.importance, rtol=1e-3, atol=1e-4)


def test_the_difference_of_products_needs_no_product():
    A, B, other_A, other_B = (torch.randn(2, *shape).double() for shape in [(3, 8), (6, 3)] * 2)
    expected = (B @ A - other_B @ other_A).square().sum((-2, -1))
    torch.testing.assert_close(_squared_difference(A, B, other_A, other_B), expected)
