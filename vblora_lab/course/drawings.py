"""Drawings that explain the method: the terms of B A, and matrices cut into sub-vectors.

As in `plots`: numbers in, a Figure out.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from vblora_lab.course.parts import frame, panels, whole_ticks
from vblora_lab.plots.style import INK, LabFigure


def rank_one_terms(A: np.ndarray, B: np.ndarray) -> LabFigure:
    """The update B A beside the r outer products that it is the sum of.

    Args:
        A: (r, in_features).
        B: (out_features, r).
    """
    terms = [np.outer(B[:, j], A[j]) for j in range(len(A))]
    pictures = [*terms, np.sum(terms, axis=0)]
    titles = [f"$b_{j} a_{j}$" for j in range(len(terms))] + ["$B A$, their sum"]
    figure, row = panels(9.0, 2.9, len(pictures))
    bound = max(float(np.abs(picture).max()) for picture in pictures)
    for axes, picture, title in zip(row, pictures, titles, strict=True):
        image = axes.imshow(picture, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
        axes.set(xlabel="input")
        axes.set_title(title, color=INK, fontsize=11)
        whole_ticks(axes)
    row[0].set_ylabel("output")
    figure.colorbar(image, ax=row, pad=0.01, fraction=0.03).set_label("value", color=INK)
    figure.alt = (
        f"{len(terms)} matrices of rank one, each a pattern of stripes, and their sum, which has "
        f"rank {len(terms)}."
    )
    return figure


def cut_matrices(
    chosen_A: np.ndarray, chosen_B: np.ndarray, num_vectors: int, vector_length: int
) -> LabFigure:
    """A and B cut into sub-vectors, each with the numbers of the bank vectors it mixes.

    Args:
        chosen_A: (r, in_tiles, k) integers, bank vectors of the sub-vectors of A.
        chosen_B: (out_tiles, r, k), those of B.
        num_vectors, vector_length: shape of the bank.
    """
    figure, (in_A, in_B, in_bank) = panels(9.0, 3.6, 3, width_ratios=[2.2, 1, 1.6])
    r, in_tiles, _ = chosen_A.shape
    out_tiles = len(chosen_B)
    lit = int(np.bincount(np.concatenate([chosen_A.ravel(), chosen_B.ravel()])).argmax())
    for rank, tile in np.ndindex(r, in_tiles):
        _cell(in_A, tile * vector_length, rank, vector_length, 1, chosen_A[rank, tile], lit)
    for tile, rank in np.ndindex(out_tiles, r):
        _cell(in_B, rank, tile * vector_length, 1, vector_length, chosen_B[tile, rank], lit)
    for vector in range(num_vectors):
        _cell(in_bank, 0, vector, vector_length, 1, [vector], lit)
    cuts_A = range(0, in_tiles * vector_length + 1, vector_length)
    cuts_B = range(0, out_tiles * vector_length + 1, vector_length)
    middles, ranks = np.arange(r) + 0.5, [str(rank) for rank in range(r)]
    frame(in_A, cuts_A[-1], r, f"$A$: rows cut into pieces of {vector_length}")
    in_A.set(xlabel="input", ylabel="rank", xticks=cuts_A)
    in_A.set_yticks(middles, ranks)
    frame(in_B, r, cuts_B[-1], "$B$: columns cut")
    in_B.set(xlabel="rank", ylabel="output", yticks=cuts_B)
    in_B.set_xticks(middles, ranks)
    frame(in_bank, vector_length, num_vectors, "the bank")
    in_bank.set(xlabel="place in the vector", ylabel="bank vector", xticks=range(vector_length + 1))
    in_bank.set_yticks([])
    figure.alt = (
        f"A has {r} rows of {in_tiles} pieces, B has {r} columns of {out_tiles} pieces, the bank "
        f"has {num_vectors} vectors. Each piece bears the numbers of the vectors that it mixes; "
        f"those with vector {lit}, the most used one, are filled and found in both matrices."
    )
    return figure


def _cell(
    axes: Axes, x: float, y: float, width: float, height: float, vectors: Iterable[int], lit: int
) -> None:
    """One sub-vector as a box with the numbers of the bank vectors in it."""
    vectors = list(vectors)
    is_lit = lit in vectors
    fill = "#b7d9ee" if is_lit else "white"
    axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=INK, linewidth=1.0))
    axes.text(
        x + width / 2, y + height / 2, "+".join(map(str, vectors)), ha="center", va="center",
        fontsize=10, color=INK, fontweight="bold" if is_lit else "normal",
    )  # fmt: skip
