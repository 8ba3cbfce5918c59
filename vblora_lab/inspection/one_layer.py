"""One adapted layer, small enough to see every number, and what it makes of one input."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vblora_lab.admixture import low_rank_matrices
from vblora_lab.errors import SelectionError

SEED, ROW = 144, 2  # of an example in which one bank vector overtakes another after a few steps


@dataclass(frozen=True)
class OneLayer:
    """The adapter of a linear layer W, and one input x that it is to learn from.

    The layer computes W x + B A x. It learns by the mean squared distance from an output that is
    wanted.

    Attributes:
        logits_A: (r, in_features / vector_length, num_vectors) float32.
        logits_B: (out_features / vector_length, r, num_vectors).
        bank: (num_vectors, vector_length).
        x: (in_features,), the input.
        base: (out_features,), W x: what the frozen layer makes of it.
        wanted: (out_features,), what the layer should make of it.
        topk: how many bank vectors make a sub-vector.

    Raises `SelectionError` if the shapes don't go together, or a number is not finite.
    """

    logits_A: np.ndarray
    logits_B: np.ndarray
    bank: np.ndarray
    x: np.ndarray
    base: np.ndarray
    wanted: np.ndarray
    topk: int = 2

    def __post_init__(self) -> None:
        for name in self.arrays():
            value = np.asarray(getattr(self, name), dtype=np.float32)
            if not np.isfinite(value).all():
                raise SelectionError(f"{name} holds numbers that aren't finite.")
            object.__setattr__(self, name, value)
        bank, logits_A, logits_B = self.bank, self.logits_A, self.logits_B
        if bank.ndim != 2 or logits_A.ndim != 3 or logits_B.ndim != 3:
            raise SelectionError(
                f"the bank has shape {bank.shape}, logits_A {logits_A.shape} and logits_B "
                f"{logits_B.shape}; they are (num_vectors, vector_length), (r, tiles, num_vectors) "
                "and (tiles, r, num_vectors)."
            )
        h, b = bank.shape
        r, in_tiles, out_tiles = len(logits_A), logits_A.shape[1], len(logits_B)
        expected = {
            "logits_A": (r, in_tiles, h), "logits_B": (out_tiles, r, h), "x": (in_tiles * b,),
            "base": (out_tiles * b,), "wanted": (out_tiles * b,),
        }  # fmt: skip
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise SelectionError(f"{name} has shape {getattr(self, name).shape}, not {shape}.")
        if not 1 <= self.topk <= h:
            raise SelectionError(f"topk={self.topk}: must be from 1 to {h}, the size of the bank.")

    @staticmethod
    def arrays() -> tuple[str, ...]:
        """The names of those attributes that are arrays."""
        return tuple(f.name for f in dataclasses.fields(OneLayer) if f.name != "topk")

    @property
    def rows(self) -> np.ndarray:
        """The logits of all sub-vectors, (N, num_vectors): those of A, then those of B."""
        flat = [logits.reshape(-1, len(self.bank)) for logits in (self.logits_A, self.logits_B)]
        return np.concatenate(flat)

    def with_rows(self, rows: np.ndarray, bank: np.ndarray) -> OneLayer:
        """The same layer with other logits, as `rows` has them, and another bank."""
        in_A = self.logits_A.shape[0] * self.logits_A.shape[1]
        return dataclasses.replace(
            self,
            logits_A=rows[:in_A].reshape(self.logits_A.shape),
            logits_B=rows[in_A:].reshape(self.logits_B.shape),
            bank=bank,
        )

    @cached_property
    def output(self) -> np.ndarray:
        """(out_features,): W x + B A x."""
        logits_A, logits_B, bank = map(torch.tensor, (self.logits_A, self.logits_B, self.bank))
        A, B = low_rank_matrices(logits_A, logits_B, bank, self.topk)
        change = B @ (A @ torch.from_numpy(self.x))
        return np.asarray(self.base + change.numpy())

    @property
    def loss(self) -> float:
        """The mean squared distance of the output from what is wanted."""
        return float(np.square(self.output - self.wanted).mean())


def example_layer(
    seed: int = SEED,
    *,
    r: int = 2,
    in_tiles: int = 4,
    out_tiles: int = 3,
    num_vectors: int = 10,
    vector_length: int = 8,
    topk: int = 2,
    row: int = ROW,
) -> OneLayer:
    """A layer drawn at random of which all is right but the choice of one sub-vector.

    What is wanted is what the layer would make if that sub-vector took most of the bank vector that
    it leaves out by the least. So a few steps on its logits alone can bring the loss near to zero.

    Args:
        seed: draws all of it.
        r, in_tiles, out_tiles, num_vectors, vector_length, topk: of the layer; its input has
            in_tiles * vector_length numbers.
        row: of `OneLayer.rows`, the sub-vector that is to choose otherwise.
    """
    draw = np.random.default_rng(seed).standard_normal
    ins, outs = in_tiles * vector_length, out_tiles * vector_length
    logits_A, logits_B = draw((r, in_tiles, num_vectors)), draw((out_tiles, r, num_vectors))
    bank = draw((num_vectors, vector_length)) / np.sqrt(vector_length)
    x, base = draw(ins), draw(outs)
    start = OneLayer(logits_A, logits_B, bank, x, base, base, topk)
    rows = start.rows.copy()
    first_left_out = np.argsort(rows[row])[::-1][min(topk, num_vectors - 1)]
    rows[row, first_left_out] = rows[row].max() + 1
    return dataclasses.replace(start, wanted=start.with_rows(rows, start.bank).output)
