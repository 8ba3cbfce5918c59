"""Drawings that explain the method: matrices cut into sub-vectors, and how one is mixed.

As in `plots`: numbers in, a Figure out.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vblora_lab.course.parts import STYLES, frame, panels, whole_ticks
from vblora_lab.plots.style import BLUE, FAINT, INK, LabFigure


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


def admixture_steps(
    logits: np.ndarray, indices: np.ndarray, weights: np.ndarray, bank: np.ndarray, u: np.ndarray
) -> LabFigure:
    """One sub-vector: its logits, the weights of the chosen ones, and the mixture of the vectors.

    Args:
        logits: (num_vectors,).
        indices, weights: (k,), the choice.
        bank: (num_vectors, vector_length).
        u: (vector_length,), the mixture.
    """
    figure, (left, middle, right) = panels(9.6, 3.0, 3, width_ratios=[1.3, 1, 1.7])
    _bars(left, logits, indices)
    left.set(xlabel="bank vector", ylabel="logit")
    left.set_title("1. logits", loc="left", color=INK)
    _bars(middle, np.bincount(indices, weights, minlength=len(logits)), indices)
    middle.set(xlabel="bank vector", ylabel="weight", ylim=(0, 1))
    middle.set_title(f"2. softmax of the top {len(indices)}", loc="left", color=INK)
    places = np.arange(len(u))
    for (colour, dashes), i, w in zip(STYLES[1:], indices, weights, strict=False):
        label = f"{w:.2f} of vector {i}"
        right.plot(places, bank[i], color=colour, linestyle=dashes, linewidth=1.4, label=label)
    right.plot(places, u, color=BLUE, linewidth=2.6, label="the sub-vector $u$")
    right.set(xlabel="place in the vector", ylabel="value")
    right.set_title("3. their mixture", loc="left", color=INK)
    right.margins(y=0.3)
    right.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", ncols=2)
    shares = ", ".join(f"{w:.2f} of vector {i}" for i, w in zip(indices, weights, strict=True))
    figure.alt = f"Of {len(logits)} logits the largest {len(indices)} are chosen: {shares}."
    return figure


def logit_gradients(gradient: np.ndarray, indices: np.ndarray) -> LabFigure:
    """The gradient of each logit of one sub-vector; the chosen ones are filled.

    Args:
        gradient: (num_vectors,).
        indices: (k,), the chosen.
    """
    figure, (axes,) = panels(6.4, 2.6, 1)
    _bars(axes, gradient, indices)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set(xlabel="bank vector", ylabel="gradient of its logit")
    axes.set_title("Only the chosen logits are told anything", loc="left", color=INK)
    reached = np.flatnonzero(gradient)
    figure.alt = (
        f"Bars at bank vectors {', '.join(map(str, reached))}; the other "
        f"{len(gradient) - len(reached)} gradients are zero."
    )
    return figure


def _bars(axes: Axes, values: np.ndarray, chosen: np.ndarray) -> None:
    """Bars, with the chosen ones filled and the others hollow."""
    filled = np.isin(np.arange(len(values)), chosen)
    colours = [BLUE if one else "white" for one in filled]
    axes.bar(np.arange(len(values)), values, color=colours, edgecolor=BLUE, linewidth=1.0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


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
