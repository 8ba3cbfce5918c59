"""Selection: which bank vectors the sub-vectors of a model choose, as plain arrays.

A Selection knows where each sub-vector sits (layer, module, A or B, rank, tile) and nothing of the
model it came from, so it can be stored, compared and drawn without torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from vblora_lab.errors import SelectionError

RowsBy = Literal["layer", "module", "matrix", "strongest", "entropy", "similarity"]
ColumnsBy = Literal["number", "usage", "similarity"]

_PROJECTION = re.compile(r"([qkv])(?:_proj|_lin|uery|ey|alue)?")  # q, q_proj, q_lin, query
_AVERAGINGS = 100  # rounds of `Selection.similarity`; more rounds change almost no row's place


@dataclass(frozen=True, eq=False)
class SubVectors:
    """The coordinates of N sub-vectors: in the order of the model's modules, A before B.

    Attributes:
        modules: full names of the adapted modules, "model.decoder.layers.0.self_attn.q_proj".
        module: (N,) int32, index into `modules`.
        layer: (N,) int32, number of the transformer layer, -1 when the name has none.
        matrix: (N,) "<U1", "A" or "B".
        rank: (N,) int32, which of the r rows of A or columns of B.
        tile: (N,) int32, which piece of that row or column.
    """

    modules: tuple[str, ...]
    module: np.ndarray
    layer: np.ndarray
    matrix: np.ndarray
    rank: np.ndarray
    tile: np.ndarray

    def __len__(self) -> int:
        return len(self.module)

    def label(self, i: int) -> str:
        """Where sub-vector i sits: "layer 0 · self_attn.q_proj · A · rank 1 · tile 0"."""
        name, layer = self.modules[self.module[i]], int(self.layer[i])
        if layer >= 0:
            name = f"layer {layer} · " + re.sub(r"^(.*?\.)??\d+\.", "", name)
        return f"{name} · {self.matrix[i]} · rank {self.rank[i]} · tile {self.tile[i]}"

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What each module is in its layer: "q_proj", or "mlp.proj" if there are other projs.

        The name after the layer's number, cut to its last part if no other module ends so.
        """
        layers = np.full(len(self.modules), -1)
        layers[self.module] = self.layer
        named = [
            name.partition(f".{layer}.")[2] or name
            for name, layer in zip(self.modules, layers, strict=True)
        ]
        endings: dict[str, set[str]] = {}
        for name in named:
            endings.setdefault(name.rpartition(".")[2], set()).add(name)
        return tuple(e if len(endings[e := n.rpartition(".")[2]]) == 1 else n for n in named)

    @cached_property
    def module_labels(self) -> tuple[str, ...]:
        """For each module how `label` names it: "layer 0 · self_attn.q_proj"."""
        modules, first_rows = np.unique(self.module, return_index=True)
        labels = list(self.modules)
        for module, row in zip(modules, first_rows, strict=True):
            labels[module] = self.label(int(row)).rsplit(" · ", 3)[0]
        return tuple(labels)

    @cached_property
    def module_places(self) -> np.ndarray:
        """(M,) int32, where each module stands in the order in which a layer uses them.

        That of the model's code, but for queries, keys and values, which stand in this order
        wherever the three are: OPT's code has keys, values, queries.
        """
        places = np.arange(len(self.modules), dtype=np.int32)
        attentions: dict[str, dict[int, int]] = {}
        for number, name in enumerate(self.modules):
            parent, _, last = name.rpartition(".")
            found = _PROJECTION.fullmatch(last)
            if found:
                attentions.setdefault(parent, {})["qkv".index(found[1])] = number
        for projections in attentions.values():
            numbers = [projections[role] for role in sorted(projections)]
            places[numbers] = np.sort(places[numbers])
        return places

    @cached_property
    def blocks(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The layers, "layer 0" and so on, and (N,) which of them each sub-vector is in.

        A module without a layer number counts as a layer of its own, under its name.
        """
        numbers = int(self.layer.max(initial=-1)) + 1  # keys from here on are those of modules
        keys = np.where(self.layer < 0, numbers + self.module.astype(np.int64), self.layer)
        present, block = np.unique(keys, return_inverse=True)
        names = [
            f"layer {key}" if key < numbers else self.modules[key - numbers] for key in present
        ]
        return tuple(names), block


@dataclass(frozen=True, eq=False)
class Selection:
    """The bank vectors that each of N sub-vectors mixes, and in what shares.

    Attributes:
        sub_vectors: their coordinates.
        num_vectors: size of the bank.
        indices: (N, k) int32, the chosen bank vectors, best first.
        weights: (N, k) float32, softmax weights; rows sum to 1.
    """

    sub_vectors: SubVectors
    num_vectors: int
    indices: np.ndarray
    weights: np.ndarray

    def dense(self) -> np.ndarray:
        """(N, num_vectors) float32: the weights, 0 where a vector isn't chosen."""
        dense = np.zeros((len(self.indices), self.num_vectors), np.float32)
        np.put_along_axis(dense, self.indices, self.weights, axis=1)
        return dense

    def usage(self) -> np.ndarray:
        """(num_vectors,) float32: the weight that each bank vector has, summed over sub-vectors."""
        chosen, weights = self.indices.ravel(), self.weights.ravel()
        return np.bincount(chosen, weights, minlength=self.num_vectors).astype(np.float32)

    def counts(self) -> np.ndarray:
        """(num_vectors,) int64: how many sub-vectors chose each bank vector."""
        return np.bincount(self.indices.ravel(), minlength=self.num_vectors)

    def entropy(self) -> np.ndarray:
        """(N,) float32: -sum of w ln w in nats; 0 for one vector alone, ln k for equal shares."""
        weights = self.weights.astype(np.float64)
        logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)  # 0 ln 0 = 0
        return -(weights * logs).sum(axis=1).astype(np.float32)

    def entropy_by_layer(self) -> np.ndarray:
        """(L,) float32: the mean entropy of each layer of `sub_vectors.blocks`, in nats."""
        names, block = self.sub_vectors.blocks
        sums = np.bincount(block, self.entropy(), minlength=len(names))
        return (sums / np.bincount(block, minlength=len(names))).astype(np.float32)

    def sharing(self) -> np.ndarray:
        """(L, L) float32: how much of what two layers take comes from the same bank vectors.

        With p_a the shares of the bank's vectors in all that layer a mixes (they sum to 1), it is
        the sum over the bank of min(p_a, p_b): 0 with no vector in common, 1 for equal shares.
        Layers as in `sub_vectors.blocks`.
        """
        names, block = self.sub_vectors.blocks
        cells = (block[:, None] * self.num_vectors + self.indices).ravel()
        taken = np.bincount(cells, self.weights.ravel(), len(names) * self.num_vectors)
        shares = taken.reshape(len(names), -1).astype(np.float32)
        shares /= shares.sum(axis=1, keepdims=True)
        return np.stack([np.minimum(row, shares).sum(axis=1) for row in shares])

    def sharers(self, vector: int) -> np.ndarray:
        """The sub-vectors (their numbers, ascending) that mix this bank vector."""
        return np.flatnonzero((self.indices == vector).any(axis=1))

    def similarity(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores of sub-vectors (N,) and bank vectors (num_vectors,): close ones for what is alike.

        Reciprocal averaging (Hill, 1973): a bank vector's score is the mean score of the
        sub-vectors that mix it, a sub-vector's the mean of the bank vectors it mixes, both
        weighted by the mixing weights, again and again. It converges to the first axis of
        correspondence analysis. A bank vector that nothing mixes scores infinity.
        """
        flat, weights = self.indices.ravel(), self.weights.astype(np.float64)
        usage = np.bincount(flat, weights.ravel(), self.num_vectors)
        row = np.random.default_rng(0).normal(size=len(self.indices))
        for _ in range(_AVERAGINGS):
            row -= row.mean()  # equal scores for all are a solution too, and say nothing
            row /= np.abs(row).max() or 1.0
            sums = np.bincount(flat, (weights * row[:, None]).ravel(), self.num_vectors)
            column = np.divide(sums, usage, out=np.zeros_like(sums), where=usage > 0)
            row = (weights * column[self.indices]).sum(axis=1)
        return row, np.where(usage > 0, column, np.inf)

    def row_order(self, by: RowsBy = "layer") -> np.ndarray:
        """The sub-vectors (N,) int32 in an order that shows a pattern.

        Args:
            by: "layer" (then module, then matrix), "module" (the same module of all layers),
                "matrix" (A before B), "strongest" (the number of the best bank vector),
                "entropy" (from certain to even) or "similarity".

        Raises:
            SelectionError: for any other word.
        """
        check_word("by", by, RowsBy)
        if by == "strongest":
            keys: tuple[np.ndarray, ...] = (-self.weights[:, 0], self.indices[:, 0])
        elif by == "entropy":
            keys = (self.entropy(),)
        elif by == "similarity":
            keys = (self.similarity()[0],)
        else:
            keys = tuple(reversed(levels(self.sub_vectors, by)))  # lexsort: the last one leads
        return np.lexsort(keys).astype(np.int32)

    def column_order(self, by: ColumnsBy = "number") -> np.ndarray:
        """The bank vectors (num_vectors,) int32 by "number", "usage" (most first) or "similarity".

        Raises:
            SelectionError: for any other word.
        """
        check_word("by", by, ColumnsBy)
        if by == "number":
            return np.arange(self.num_vectors, dtype=np.int32)
        key = -self.usage() if by == "usage" else self.similarity()[1]
        return np.argsort(key, kind="stable").astype(np.int32)

    def churn(self, earlier: Selection) -> float:
        """The share of sub-vectors, 0 to 1, whose chosen set differs from an earlier one's.

        Raises:
            SelectionError: the two differ in their numbers of sub-vectors or of choices.
        """
        if self.indices.shape != earlier.indices.shape:
            raise SelectionError(
                f"these selections have {self.indices.shape} and {earlier.indices.shape} "
                "sub-vectors and choices; only selections of one model can be compared."
            )
        now, before = np.sort(self.indices, axis=1), np.sort(earlier.indices, axis=1)
        return float((now != before).any(axis=1).mean())


def levels(sub_vectors: SubVectors, by: str) -> list[np.ndarray]:
    """The keys (N,) that rows are sorted and grouped by, the widest first."""
    block, places = sub_vectors.blocks[1], sub_vectors.module_places
    module = places[sub_vectors.module]
    first_of_kind: dict[str, int] = {}
    for kind, place in zip(sub_vectors.kinds, places.tolist(), strict=True):
        first_of_kind[kind] = min(place, first_of_kind.get(kind, place))
    kind = np.array([first_of_kind[k] for k in sub_vectors.kinds])[sub_vectors.module]
    matrix = (sub_vectors.matrix == "B").astype(np.int32)
    return {
        "layer": [block, module, matrix],
        "module": [kind, block, matrix],
        "matrix": [matrix, block, module],
    }[by]


def check_word(name: str, value: object, allowed: object) -> None:
    if value not in get_args(allowed):
        raise SelectionError(f"{name}={value!r}; allowed are {', '.join(get_args(allowed))}.")
