"""Fitting a bank: given sub-vectors, find a bank and the admixtures that come closest to them.

With sub-vectors x_n (rows of X), look for bank vectors c_i and, for each n, `topk` of them with
weights w_n that are at least 0 and sum to 1, such that

    sum over n of  importance_n * | x_n - sum over i of w_ni c_i |^2

is small. Each x_n should thus lie within the simplex that its chosen vectors span, so the bank must
reach further out than the data. For topk = 1 this is k-means; for more it is archetypal analysis
(Cutler and Breiman, 1994) with sparse weights. Two steps alternate, each easy when the other's
result is given:

    bank -> choice     greedily, from several starts, with the best weights for each choice
    choice -> bank     a linear least-squares problem, solved exactly

Where they settle is a local minimum, most often because two bank vectors do the work of one and are
missed elsewhere. So whenever they settle, the vectors of the best bank so far that are needed least
move to where it errs; which places, is drawn, so that each attempt is another.

Nothing here knows of layers; `convert` cuts LoRA's matrices into sub-vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vblora_lab.admixture import mix

STARTS = 8  # choices grown per sub-vector; the best is kept
SEEDING_POOL = 16384  # sub-vectors, at most, among which the first bank is drawn
NUMBERS_AT_ONCE = 2**19  # in an intermediate tensor: 2 MiB in float32, which stays in the cache
SETTLED = 0.98  # a round that leaves more than this share of the squared error changes little
MOVED = 0.02  # share of the bank that moves then; on made-up banks, 0.05 found fewer of them again


class Fit(NamedTuple):
    """A bank (num_vectors, vector_length), and per sub-vector indices and weights (N, topk)."""

    bank: Tensor
    indices: Tensor
    weights: Tensor

    def sub_vectors(self) -> Tensor:
        """(N, vector_length): what the admixtures give."""
        return mix(self.indices, self.weights, self.bank)


def fit_bank(
    targets: Tensor, importance: Tensor, num_vectors: int, topk: int, rounds: int, seed: int
) -> Fit:
    """Fit a bank to sub-vectors by alternating between choice and bank.

    Args:
        targets: (N, vector_length) float32 sub-vectors, of a size around 1.
        importance: (N,) how much the squared error of each counts, at least 0.
        num_vectors, topk: size of the bank, and how many of its vectors make a sub-vector.
        rounds: how often choice and bank alternate, at least 1.
        seed: of the first bank; equal arguments give equal results.

    Returns:
        The best bank and choices of all rounds.
    """
    generator = torch.Generator().manual_seed(seed)
    bank = spread_out_sample(targets, importance, num_vectors, generator)
    best, lowest, before = None, torch.inf, torch.inf
    for _ in range(rounds):
        indices, weights = choose_for(targets, bank, topk)
        fit = Fit(best_bank(targets, importance, indices, weights, bank), indices, weights)
        error = (importance * _squared_errors(targets, fit)).sum().item()
        if best is None or error < lowest:
            best, lowest = fit, error
        if error > SETTLED * before:
            bank, before = _moved(targets, importance, best, generator), torch.inf
        else:
            bank, before = fit.bank, error
    assert best is not None
    return best


def spread_out_sample(
    targets: Tensor, importance: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Draw `size` of the sub-vectors far from each other (k-means++; Arthur, Vassilvitskii 2007).

    Each is drawn with a probability that grows with its squared distance from those drawn before.
    Fewer sub-vectors than asked for are filled up with copies.
    """
    count = len(targets)
    if count > SEEDING_POOL:
        pool = torch.randperm(count, generator=generator)[:SEEDING_POOL].to(targets.device)
        targets, importance = targets[pool], importance[pool]
    odds = importance * targets.square().sum(-1)
    distance = torch.full_like(importance, torch.inf)
    drawn = []
    for _ in range(size):
        i = int(_drawn(odds, 1, generator))
        drawn.append(i)
        distance = torch.minimum(distance, (targets - targets[i]).square().sum(-1))
        odds = importance * distance
    return targets[drawn].clone()


def _drawn(odds: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` different numbers below len(odds), by their odds."""
    if int((odds > 0).sum()) < count:  # all that have odds, and any others
        odds = odds + odds.mean() + 1
    return torch.multinomial(odds.double().cpu(), count, generator=generator).to(odds.device)


def choose_for(targets: Tensor, bank: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Choose `topk` bank vectors and their weights for each target.

    The best few single vectors are starts. Each grows by the vector that, mixed in with the best
    share, brings the admixture closest; all weights are then optimised again. The best one wins.

    Args:
        targets: (N, vector_length).
        bank: (num_vectors, vector_length).
        topk: at most num_vectors.

    Returns:
        indices (N, topk) int64, all different, and weights (N, topk), at least 0, sum 1.
    """
    starts = min(STARTS, len(bank)) if topk > 1 else 1
    rows = max(1, NUMBERS_AT_ONCE // (starts * topk * len(bank)))
    parts = [_choose_for(part, bank, topk, starts) for part in targets.split(rows)]
    indices, weights = zip(*parts, strict=True)
    return torch.cat(indices), torch.cat(weights)


def _choose_for(targets: Tensor, bank: Tensor, topk: int, starts: int) -> tuple[Tensor, Tensor]:
    products = bank @ bank.T  # c_i . c_j
    lengths = products.diagonal()  # |c_i|^2
    to_target = (targets @ bank.T).unsqueeze(1)  # x . c_i  (N, 1, num_vectors)
    distance = lengths - 2 * to_target.squeeze(1)  # |x - c_i|^2, less |x|^2
    indices = distance.topk(starts, dim=-1, largest=False).indices.unsqueeze(-1)  # (N, starts, 1)
    weights = torch.ones_like(indices, dtype=targets.dtype)
    target_lengths = targets.square().sum(-1)[:, None, None]
    to_target = to_target.expand(-1, starts, -1)
    while True:
        chosen_to_target = to_target.gather(-1, indices)
        # (c_i - x) . (c_j - x) of the chosen: with it, |x - sum of w_i c_i|^2 is w' G w.
        G = products[indices.unsqueeze(-1), indices.unsqueeze(-2)] + target_lengths.unsqueeze(-1)
        G = G - chosen_to_target.unsqueeze(-1) - chosen_to_target.unsqueeze(-2)
        weights = _best_weights(G, weights)
        if indices.shape[-1] == topk:
            break
        # Moving from the admixture m towards c_j by a share t changes the squared error by
        # -2 t (x - m).(c_j - m) + t^2 |c_j - m|^2.
        mixed = mix(indices, weights, products)  # m . c_j
        mixed_to_target = (weights * chosen_to_target).sum(-1, keepdim=True)
        mixed_length = (weights * mixed.gather(-1, indices)).sum(-1, keepdim=True)
        slope = to_target - mixed_to_target - mixed + mixed_length
        curvature = (lengths - 2 * mixed + mixed_length).clamp_min(1e-12)
        share = (slope / curvature).clamp(0, 1)
        gain = share * (2 * slope - share * curvature)
        best = gain.scatter(-1, indices, -torch.inf).argmax(-1, keepdim=True)
        share = share.gather(-1, best)
        indices = torch.cat([indices, best], dim=-1)
        weights = torch.cat([weights * (1 - share), share], dim=-1)
    error = torch.einsum("...i,...ij,...j->...", weights, G, weights)
    winner = error.argmin(-1)[:, None, None].expand(-1, 1, topk)
    return indices.gather(1, winner).squeeze(1), weights.gather(1, winner).squeeze(1)


def _best_weights(G: Tensor, weights: Tensor, sweeps: int = 5) -> Tensor:
    """Minimise w' G w over weights that are at least 0 and sum to 1.

    Takes two weights at a time and shifts between them what is best, which is exact for two.

    Args:
        G: (..., k, k), positive semi-definite.
        weights: (..., k), where to start.
    """
    k = weights.shape[-1]
    shares = list(weights.unbind(-1))
    for _ in range(sweeps if k > 2 else 1):
        for i in range(k):
            for j in range(i):
                slope = sum(shares[n] * (G[..., n, i] - G[..., n, j]) for n in range(k))
                curvature = G[..., i, i] + G[..., j, j] - 2 * G[..., i, j]
                shift = slope / curvature.clamp_min(1e-12)  # from i to j
                shift = torch.minimum(torch.maximum(shift, -shares[j]), shares[i])
                shares[i], shares[j] = shares[i] - shift, shares[j] + shift
    return torch.stack(shares, dim=-1)


def best_bank(
    targets: Tensor, importance: Tensor, indices: Tensor, weights: Tensor, bank: Tensor
) -> Tensor:
    """The bank that is best for given choices and weights: weighted linear least squares.

    Solves (W' D W + e I) C = W' D X + e C_old, with W (N, num_vectors) the weights, D the
    importance and a tiny e, which leaves a vector that nobody chose where it was.
    """
    num_vectors, dtype = len(bank), torch.float64
    pairs = (importance[:, None, None] * weights.unsqueeze(-1) * weights.unsqueeze(-2)).to(dtype)
    cells = indices.unsqueeze(-1) * num_vectors + indices.unsqueeze(-2)
    left = pairs.new_zeros(num_vectors * num_vectors)
    left.index_add_(0, cells.flatten(), pairs.flatten())
    left = left.view(num_vectors, num_vectors)
    right = torch.zeros_like(bank, dtype=dtype)
    for share, chosen in zip((importance[:, None] * weights).T, indices.T, strict=True):
        right.index_add_(0, chosen, (share.unsqueeze(-1) * targets).to(dtype))
    e = 1e-7 * left.diagonal().mean().clamp_min(1e-30)
    left.diagonal().add_(e)
    return torch.linalg.solve(left, right + e * bank).to(bank.dtype)


def _squared_errors(targets: Tensor, fit: Fit) -> Tensor:
    """(N,) the squared distance of each admixture from its target."""
    return (targets - fit.sub_vectors()).square().sum(-1)


def _moved(targets: Tensor, importance: Tensor, fit: Fit, generator: torch.Generator) -> Tensor:
    """The bank with the vectors that are needed least moved to where it errs.

    If sub-vector n had to do without c_i, with the shares of the others scaled up to 1, its
    admixture m would shift by w_i / (1 - w_i) * (m - c_i).
    """
    mixed = fit.sub_vectors()
    shift = fit.weights / (1 - fit.weights).clamp_min(0.05)
    reach = (fit.bank[fit.indices] - mixed.unsqueeze(1)).square().sum(-1)
    loss = importance.unsqueeze(-1) * shift.square() * reach
    need = torch.zeros_like(fit.bank[:, 0])
    need.index_add_(0, fit.indices.flatten(), loss.flatten())
    count = min(max(1, round(MOVED * len(need)), int((need == 0).sum())), len(targets))
    odds = importance * (targets - mixed).square().sum(-1)
    worst = _drawn(odds, count, generator)
    bank = fit.bank.clone()
    # As far beyond the target as the admixture fell short of it: the bank must reach further out.
    bank[need.topk(count, largest=False).indices] = 2 * targets[worst] - mixed[worst]
    return bank
