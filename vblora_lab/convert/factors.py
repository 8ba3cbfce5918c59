"""A LoRA's two factors as sub-vectors: balanced, cut, fitted by a bank, and the error that remains.

The update of a module is B A. Its factors aren't unique, since B A = (B M)(M^-1 A) for any
invertible M, so they are balanced first: B' and A' of equal size share one bank better. Then they
are cut into the sub-vectors that VB-LoRA mixes, rows of A and columns of B in pieces of
vector_length, for `fitting` to find a bank. What counts in the end is the product,

    sum over modules of  | B' A' - B A |^2 ,

which bank and logits descend together by Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vblora_lab.admixture import mix
from vblora_lab.convert.fitting import Fit, fit_bank

Factors = tuple[Tensor, Tensor]  # A (r, in_features) and B (out_features, r)

SUB_VECTORS_AT_ONCE = 2**14  # of which modules' errors are taken together; bounds the memory
LEARNING_RATE = 0.01  # for a bank and logits whose numbers are of a size around 1
LEAST_WEIGHT = 1e-6  # a weight of 0 has no logit
MARGIN = 0.5  # of the least chosen logit over those that aren't


class Errors(NamedTuple):
    """Relative Frobenius errors |found - wanted| / |wanted|.

    A and B are compared with the balanced factors that were fitted, `update` with the LoRA's own
    scaling * B A: the number that counts. Infinite for a module that should have no update.
    """

    A: float
    B: float
    update: float


# --- other factors with the same product


def _as_they_are(A: Tensor, B: Tensor) -> Factors:
    return A, B


def _equal_norms(A: Tensor, B: Tensor) -> Factors:
    """Give row i of A and column i of B the geometric mean of their norms."""
    norms_A, norms_B = A.norm(dim=1), B.norm(dim=0)
    common = (norms_A * norms_B).sqrt()
    tiny = torch.finfo(A.dtype).tiny  # a component of norm zero becomes zero on both sides
    return A * (common / norms_A.clamp_min(tiny))[:, None], B * (common / norms_B.clamp_min(tiny))


def _singular_vectors(A: Tensor, B: Tensor) -> Factors:
    """B A = U S V' becomes U sqrt(S) and sqrt(S) V', by way of matrices of size r at most.

    There are no more components than the smallest of r, in_features and out_features.
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    root = S.sqrt()
    return ((Vh @ Q_A.T) * root[:, None]).to(A.dtype), (Q_B @ U * root).to(B.dtype)


BALANCES: dict[str, Callable[[Tensor, Tensor], Factors]] = {
    "none": _as_they_are,
    "norms": _equal_norms,
    "svd": _singular_vectors,
}


def _of_rank(A: Tensor, B: Tensor, r: int) -> Factors:
    """Split components into equal parts until there are r: n parts of 1 / sqrt(n) on each side."""
    part_of = torch.arange(r) % len(A)
    scale = torch.bincount(part_of)[part_of].rsqrt()
    return A[part_of] * scale[:, None], B[:, part_of] * scale


# --- fitting the sub-vectors of all modules


class _Group(NamedTuple):
    """Modules whose matrices have the same shapes, stacked."""

    names: list[str]
    A: Tensor  # (modules, r, in_features)
    B: Tensor  # (modules, out_features, r)


class SubVectorProblem:
    """The sub-vectors of balanced factors, to be fitted, and what they are worth.

    Sub-vectors lie module by module, those of A (r, in_tiles) before those of B (out_tiles, r).
    They are divided by `unit`, their root mean square, so that learning rates mean the same for
    every LoRA.

    Args:
        factors: A and B of each module, float32. Those of smaller rank than the largest are brought
            to it by splitting components, which changes no product.
        balance: a key of BALANCES.
        vector_length: divides every input and output size.

    Attributes:
        factors: A and B of each module, balanced, all of one rank.
    """

    def __init__(self, factors: Mapping[str, Factors], balance: str, vector_length: int) -> None:
        self.vector_length = vector_length
        self.r = max(len(A) for A, _ in factors.values())
        self.factors = {
            name: _of_rank(*BALANCES[balance](A, B), self.r) for name, (A, B) in factors.items()
        }
        total = sum(A.square().sum() + B.square().sum() for A, B in self.factors.values())
        count = sum(A.numel() + B.numel() for A, B in self.factors.values())
        self.unit = float((cast(Tensor, total) / count).sqrt()) or 1.0
        self.groups = list(self._grouped())
        parts = [self._cut(group) for group in self.groups]
        self.counts = [part.shape[0] * part.shape[1] for part in parts]
        self.targets = torch.cat([part.flatten(0, 1) for part in parts])
        # To first order the error of a row of A counts times its column of B, and vice versa.
        worth = [self._worth(group).flatten() for group in self.groups]
        self.importance = torch.cat(worth)
        self.importance = self.importance / self.importance.mean().clamp_min(1e-30)
        self.size = torch.stack([_squared_update(g.A, g.B).sum() for g in self.groups]).sum()

    def _grouped(self) -> Iterator[_Group]:
        by_shape: dict[tuple[torch.Size, torch.Size], list[str]] = {}
        for name, (A, B) in self.factors.items():
            by_shape.setdefault((A.shape, B.shape), []).append(name)
        for (shape_A, shape_B), names in by_shape.items():
            each = (shape_A.numel() + shape_B.numel()) // self.vector_length
            most = max(1, SUB_VECTORS_AT_ONCE // each)
            for start in range(0, len(names), most):
                part = names[start : start + most]
                A, B = (torch.stack([self.factors[n][side] for n in part]) for side in (0, 1))
                yield _Group(part, A / self.unit, B / self.unit)

    def _cut(self, group: _Group) -> Tensor:
        """(modules, sub-vectors of one, vector_length)."""
        length = self.vector_length
        of_A = group.A.unflatten(2, (-1, length)).flatten(1, 2)
        of_B = group.B.unflatten(1, (-1, length)).transpose(2, 3).flatten(1, 2)
        return torch.cat([of_A, of_B], dim=1)

    def _worth(self, group: _Group) -> Tensor:
        """(modules, sub-vectors of one): the squared norm of the matrix row or column it meets."""
        length = self.vector_length
        in_tiles, out_tiles = group.A.shape[2] // length, group.B.shape[1] // length
        of_A = group.B.square().sum(1).repeat_interleave(in_tiles, dim=1)
        of_B = group.A.square().sum(2).repeat(1, out_tiles)
        return torch.cat([of_A, of_B], dim=1)

    def _joined(self, group: _Group, sub_vectors: Tensor) -> Factors:
        """The inverse of `_cut`, of sub-vectors in one row: A (modules, r, in) and B."""
        modules, r, in_features = group.A.shape
        length = self.vector_length
        of_A = r * in_features // length
        each = sub_vectors.view(modules, -1, length)
        A = each[:, :of_A].reshape(modules, r, in_features)
        B = each[:, of_A:].unflatten(1, (-1, r)).transpose(2, 3).flatten(1, 2)
        return A, B

    def fit(self, num_vectors: int, topk: int, rounds: int, seed: int) -> Fit:
        """A bank for the sub-vectors, see `fit_bank`."""
        return fit_bank(self.targets, self.importance, num_vectors, topk, rounds, seed)

    def error(self, fit: Fit) -> float:
        """The squared error of all updates, relative to their squared size."""
        parts = self._parts(fit.indices, fit.weights)
        error = sum(self._error(*part, fit.bank) for part in parts)
        return float(error / self.size) if self.size > 0 else float(error)

    def _parts(self, indices: Tensor, weights: Tensor) -> Iterator[tuple[_Group, Tensor, Tensor]]:
        split = indices.split(self.counts), weights.split(self.counts)
        yield from zip(self.groups, *split, strict=True)

    def _error(self, group: _Group, indices: Tensor, weights: Tensor, bank: Tensor) -> Tensor:
        A, B = self._joined(group, mix(indices, weights, bank))
        return _squared_difference(A, B, group.A, group.B).sum()

    def refine(self, fit: Fit, steps: int) -> Fit:
        """Let bank and chosen logits descend the error of all updates; keep the best of the way."""
        bank = fit.bank.clone().requires_grad_()
        start = fit.weights.clamp_min(LEAST_WEIGHT).log()
        logits = [part.clone().requires_grad_() for part in start.split(self.counts)]
        optimizer = torch.optim.Adam([bank, *logits], lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, steps))
        best, lowest = fit, torch.inf
        for step in range(steps + 1):
            error = 0.0
            optimizer.zero_grad()
            for group, indices, mine in zip(
                self.groups, fit.indices.split(self.counts), logits, strict=True
            ):
                part = self._error(group, indices, mine.softmax(-1), bank)
                # Scaled so that Adam's epsilon is small beside the gradients of single numbers.
                (part * (len(self.targets) / self.size.clamp_min(1e-30))).backward()
                error += part.item()
            if error < lowest:
                weights = torch.cat([mine.detach() for mine in logits]).softmax(-1)
                best, lowest = Fit(bank.detach().clone(), fit.indices, weights), error
            if step < steps:
                optimizer.step()
                schedule.step()
        return best

    def bank_and_logits(self, fit: Fit) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The bank in the LoRA's own unit, and by module all logits of A and of B.

        Logits are the logarithms of the weights, moved so that the least chosen one lies MARGIN
        above all that aren't chosen, which are 0. Training can go on from there.
        """
        num_vectors = len(fit.bank)
        by_module = {}
        for group, indices, weights in self._parts(fit.indices, fit.weights):
            chosen = weights.clamp_min(LEAST_WEIGHT).log()
            chosen = chosen - chosen.amin(-1, keepdim=True) + MARGIN
            logits = chosen.new_zeros(len(indices), num_vectors).scatter(1, indices, chosen)
            each = logits.view(len(group.names), -1, num_vectors)
            of_A = self.r * group.A.shape[2] // self.vector_length
            for name, mine in zip(group.names, each, strict=True):
                logits_A = mine[:of_A].unflatten(0, (self.r, -1))
                by_module[name] = logits_A, mine[of_A:].unflatten(0, (-1, self.r))
        return fit.bank * self.unit, by_module


# --- errors


def _squared_update(A: Tensor, B: Tensor) -> Tensor:
    """|B A|^2 = sum of (B'B) * (A A'), which never builds the product."""
    return ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))


def _squared_difference(A: Tensor, B: Tensor, wanted_A: Tensor, wanted_B: Tensor) -> Tensor:
    """|B A - wanted_B wanted_A|^2, (...) for matrices (..., r, in) and (..., out, r).

    With dA and dB the differences of the factors, B A - wanted_B wanted_A = dB A + wanted_B dA.
    Written so, no large numbers cancel when the difference is small.
    """
    dA, dB = A - wanted_A, B - wanted_B
    return _squared_update(torch.cat([A, dA], dim=-2), torch.cat([dB, wanted_B], dim=-1))


def errors(
    found: Mapping[str, Factors], balanced: Mapping[str, Factors], wanted: Mapping[str, Factors]
) -> tuple[dict[str, Errors], Errors]:
    """Errors per module, and over all: of A and B against balanced ones, of B A against wanted."""
    squares = {}
    for name, (A, B) in found.items():
        A, B = A.double(), B.double()
        balanced_A, balanced_B = (factor.double() for factor in balanced[name])
        wanted_A, wanted_B = (factor.double() for factor in wanted[name])
        squares[name] = torch.stack(
            [
                (A - balanced_A).square().sum(),
                balanced_A.square().sum(),
                (B - balanced_B).square().sum(),
                balanced_B.square().sum(),
                _squared_update(torch.cat([A, wanted_A]), torch.cat([B, -wanted_B], dim=1)),
                _squared_update(wanted_A, wanted_B),
            ]
        )
    overall = _relative(torch.stack(list(squares.values())).sum(0))
    return {name: _relative(square) for name, square in squares.items()}, overall


def _relative(squares: Tensor) -> Errors:
    """Errors from pairs of squared norms: of a difference, and of what it is measured against."""
    differences, sizes = squares.clamp_min(0).sqrt().view(3, 2).unbind(1)
    ratios = torch.where(differences > 0, differences / sizes, 0)  # infinite for a wanted zero
    return Errors(*ratios.tolist())
