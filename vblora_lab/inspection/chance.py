"""What each module takes from the bank, beside what chance would give it.

*By chance* means here: each sub-vector keeps its k weights and draws anew which k bank vectors they
belong to, every choice as likely as any other. A sub-vector then takes X of a given bank vector,
one of its weights w_j with probability 1 / h each, and nothing otherwise, so that

    E[X] = sum_j w_j / h        Var[X] = sum_j w_j^2 / h - E[X]^2,

and what a module takes is a sum of independent X, one of each of its sub-vectors: means and
variances add up (`ModuleUse`). What all bank vectors do together has no such formula, and is drawn
from a fixed seed (`notice`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from vblora_lab.errors import SelectionError
from vblora_lab.inspection.selection import Selection, SubVectors

STANDS_OUT = 3.0
"""Standard deviations above chance from which on a cell is said to stand out."""
MOST_USED = 0.2
"""The part of the bank whose share of all weight is told: a fifth."""
MOST_MODULES = 64
"""A model with more modules than that is shown by its layers."""

_MOST_DRAWN = (
    2**16
)  # numbers or cells of all rounds together: more would move no digit that is told
_ROUNDS = (4, 64)


@dataclass(frozen=True, eq=False)
class ModuleUse:
    """What each of G modules (or layers, see `modules_of`) takes from each of h bank vectors.

    Attributes:
        names: of the modules, "layer 0 · self_attn.q_proj".
        sizes: (G,) int64, how many sub-vectors each has.
        weights: (G, h) float32, the weights summed over the module's sub-vectors.
        expected: (G,) float32, what chance gives each cell of a row, on average.
        spread: (G,) float32, the standard deviation of that.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    weights: np.ndarray
    expected: np.ndarray
    spread: np.ndarray

    @cached_property
    def excess(self) -> np.ndarray:
        """(G, h) float32: how many standard deviations each weight lies above chance."""
        above = self.weights - self.expected[:, None]
        spread = np.broadcast_to(self.spread[:, None], above.shape)
        return np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)

    @property
    def stands_out(self) -> np.ndarray:
        """(G, h) bool: the cells with more than `STANDS_OUT`."""
        return self.excess > STANDS_OUT


def modules_of(sub_vectors: SubVectors) -> tuple[tuple[str, ...], np.ndarray]:
    """The modules, and (N,) which of them each sub-vector is in; layers, if modules are too many.

    Returns:
        Names, and numbers of them: for modules as in `SubVectors.modules`, for layers as in
        `SubVectors.blocks`.
    """
    if len(sub_vectors.modules) <= MOST_MODULES:
        return sub_vectors.module_labels, sub_vectors.module
    return sub_vectors.blocks


def module_use(selection: Selection) -> ModuleUse:
    """Sum a selection by modules, and say what chance would give."""
    names, module = modules_of(selection.sub_vectors)
    h, count = selection.num_vectors, len(names)
    weights = selection.weights.astype(np.float64)
    cells = (module[:, None] * h + selection.indices).ravel()
    taken = np.bincount(cells, weights.ravel(), count * h).reshape(count, h)
    mean = weights.sum(axis=1) / h
    variance = (weights**2).sum(axis=1) / h - mean**2
    return ModuleUse(
        names=names,
        sizes=np.bincount(module, minlength=count),
        weights=taken.astype(np.float32),
        expected=np.bincount(module, mean, count).astype(np.float32),
        spread=np.sqrt(np.bincount(module, variance, count).clip(min=0)).astype(np.float32),
    )


@dataclass(frozen=True)
class Notice:
    """What there is to notice in a selection, each number beside what chance gives.

    Attributes:
        vectors, num_vectors: how many the most used fifth of the bank is, and the whole bank.
        share: of all weight, that this fifth has, 0 to 1.
        share_by_chance, share_spread: mean and standard deviation of that by chance.
        most_used: number of the bank vector with most weight.
        most, most_by_chance: its weight, and the mean weight of the most used one by chance.
        cells, outstanding: how many cells there are (modules times bank vectors), and how many of
            them stand out, see `ModuleUse.stands_out`.
        outstanding_by_chance: how many would on average.
        strongest: name of the module, bank vector, weight and weight by chance of the cell that is
            furthest above chance. None where no more cells stand out than chance explains.
        kept, kept_by_chance: which part of the choices at the start are still choices, 0 to 1, and
            what it would be if all were drawn anew. None without a start.
    """

    vectors: int
    num_vectors: int
    share: float
    share_by_chance: float
    share_spread: float
    most_used: int
    most: float
    most_by_chance: float
    cells: int
    outstanding: int
    outstanding_by_chance: float
    strongest: tuple[str, int, float, float] | None
    kept: float | None
    kept_by_chance: float

    @property
    def headline(self) -> str:
        """How unevenly the bank is used."""
        carry = f"{self.vectors} of {self.num_vectors} bank vectors carry {self.share:.0%}"
        carry += " of the weight"
        if abs(self.share - self.share_by_chance) > 2 * self.share_spread:
            return f"{carry}; chance: {self.share_by_chance:.0%}."
        return f"{carry}, as by chance ({self.share_by_chance:.0%})."

    @property
    def details(self) -> str:
        """The most used bank vector, the cells that stand out, and what is left of the start."""
        cells = f"{self.outstanding:,} of {self.cells:,} cells (chance: "
        text = f"Most used: vector {self.most_used} with {self.most:.1f} (chance: "
        text += (
            f"{self.most_by_chance:.1f}). Standing out: {cells}{self.outstanding_by_chance:.0f})"
        )
        if self.strongest is not None:
            module, vector, weight, by_chance = self.strongest
            text += f", most of all vector {vector} in {module}: {weight:.1f} ({by_chance:.1f})"
        if self.kept is not None:
            text += f". Kept since the start: {self.kept:.0%} of the choices "
            text += f"(chance: {self.kept_by_chance:.0%})"
        return f"{text}."


def kept_choices(selection: Selection, start: Selection) -> np.ndarray:
    """(N,) float64: the part of its choices at the start that a sub-vector has kept, 0 to 1.

    Raises:
        SelectionError: the two are of different adapters.
    """
    if start.indices.shape != selection.indices.shape:
        raise SelectionError(
            f"these selections have {selection.indices.shape} and {start.indices.shape} "
            "sub-vectors and choices; only selections of one adapter can be compared."
        )
    return (selection.indices[:, :, None] == start.indices[:, None]).any(axis=1).mean(axis=1)


def notice(
    selection: Selection, start: Selection | None = None, use: ModuleUse | None = None
) -> Notice:
    """What there is to notice in a selection.

    Args:
        selection: of an adapter.
        start: what the same adapter chose at the start.
        use: its `module_use`, if that is known already.

    Raises:
        SelectionError: `start` is of another adapter.
    """
    use = use or module_use(selection)
    usage = use.weights.sum(axis=0, keepdims=True)
    vectors = max(1, round(MOST_USED * selection.num_vectors))
    drawn, outstanding_by_chance = _drawn(use, selection)
    shares = _share(drawn, vectors)
    outstanding = int(use.stands_out.sum())
    module, vector = np.unravel_index(use.excess.argmax(), use.excess.shape)
    cell = float(use.weights[module, vector]), float(use.expected[module])
    by_chance = outstanding_by_chance + 2 * outstanding_by_chance**0.5  # of rare events: Poisson
    return Notice(
        vectors=vectors,
        num_vectors=selection.num_vectors,
        share=float(_share(usage, vectors)[0]),
        share_by_chance=float(shares.mean()),
        share_spread=float(shares.std(ddof=1)),
        most_used=int(usage.argmax()),
        most=float(usage.max()),
        most_by_chance=float(drawn.max(axis=1).mean()),
        cells=use.weights.size,
        outstanding=outstanding,
        outstanding_by_chance=outstanding_by_chance,
        strongest=(use.names[module], int(vector), *cell) if outstanding > by_chance else None,
        kept=None if start is None else float(kept_choices(selection, start).mean()),
        kept_by_chance=selection.indices.shape[1] / selection.num_vectors,
    )


def _share(usage: np.ndarray, vectors: int) -> np.ndarray:
    """(rounds, h) -> (rounds,): the share of all weight that the most used `vectors` have."""
    most = np.partition(usage, -vectors, axis=1)[:, -vectors:]
    return most.sum(axis=1) / usage.sum(axis=1)


def _drawn(use: ModuleUse, selection: Selection) -> tuple[np.ndarray, float]:
    """By chance: (rounds, h) weights of all bank vectors, and how many cells stand out."""
    module = modules_of(selection.sub_vectors)[1]
    (count, h), (n, k) = use.weights.shape, selection.indices.shape
    rounds = int(np.clip(_MOST_DRAWN // max(count * h, n * k), *_ROUNDS))
    cells = _chosen(n, k, h, rounds) + (module * h)[:, None]
    cells += (np.arange(rounds) * (count * h))[:, None, None]
    weights = np.broadcast_to(selection.weights, cells.shape)
    taken = np.bincount(cells.ravel(), weights.ravel(), rounds * count * h)
    taken = taken.reshape(rounds, count, h)
    above = use.expected + STANDS_OUT * use.spread
    return taken.sum(axis=1), float(np.count_nonzero(taken > above[:, None])) / rounds


@lru_cache(maxsize=4)
def _chosen(n: int, k: int, h: int, rounds: int) -> np.ndarray:
    """(rounds, n, k) int64: for each sub-vector k different numbers below h, all sets alike."""
    rng = np.random.default_rng(0)
    chosen = np.empty((rounds, n, k), np.int64)
    for j in range(k):
        draw = rng.integers(h - j, size=(rounds, n))  # among those that are still free
        for earlier in np.moveaxis(np.sort(chosen[..., :j], axis=-1), -1, 0):
            draw += draw >= earlier
        chosen[..., j] = draw
    return chosen
