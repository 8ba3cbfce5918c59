"""What sub-vectors take from the bank, and how that changed.

Pure, as all of this room: numbers in, a `matplotlib.figure.Figure` out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vblora_lab.inspection.rows import row_groups
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.plots.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    RULE,
    WEIGHTS,
    eighths,
    empty_figure,
    literal,
)


def selection_heatmap(selection: Selection) -> Figure:
    """One row for each sub-vector, one column for each bank vector; colour is the weight.

    A row has `topk` coloured cells, the bank vectors it mixes; white means not chosen. Where rows
    are thinner than a line of print, their cells are drawn taller than the row: none is lost.
    """
    body = height_of_rows(selection)
    figure, axes = empty_figure(9.0, body + 1.1)
    draw_selection(axes, selection, body)
    figure.alt = (
        f"{len(selection.sub_vectors)} sub-vectors as rows, {selection.num_vectors} bank vectors "
        f"as columns; each row has {selection.indices.shape[1]} coloured cells, the vectors that "
        "it mixes."
    )
    return figure


def height_of_rows(selection: Selection) -> float:
    """Of a heatmap, in inches."""
    return float(np.clip(3.0 + 0.008 * len(selection.sub_vectors), 3.6, 11.0))


def draw_selection(axes: Axes, selection: Selection, body: float) -> None:
    """The map, on axes that are `body` inches tall."""
    rows, columns = len(selection.sub_vectors), selection.num_vectors
    # Ascending weight, so that where thin rows overlap the strongest cell lies on top.
    weights = selection.weights.ravel()
    order = np.argsort(weights, kind="stable")
    place = np.empty(rows, int)
    place[selection.row_order("layer")] = np.arange(rows)
    row = np.repeat(place, selection.indices.shape[1])[order]
    column = selection.indices.ravel()[order]
    tall = max(0.5, 0.011 * rows / body)  # half a cell, in rows: 0.022 inches at least
    wide = max(0.5, 0.011 * columns / 6.5)
    corners = np.array([(-wide, -tall), (wide, -tall), (wide, tall), (-wide, tall)])
    cells = PolyCollection(
        np.stack([column, row], axis=-1)[:, None, :] + corners,
        array=weights[order], cmap=WEIGHTS, norm=Normalize(0, 1), linewidths=0,
    )  # fmt: skip
    axes.add_collection(cells)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel="bank vector")
    axes.xaxis.set_major_locator(eighths(columns))
    _label_rows(axes, selection.sub_vectors, body)
    axes.set_title("What each sub-vector takes from the bank", loc="left", color=INK)
    bar = axes.figure.colorbar(cells, ax=axes, aspect=body * 6, pad=0.015, fraction=0.02)
    bar.set_label("weight in the mixture (white: not chosen)", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)


def usage_histogram(selection: Selection) -> Figure:
    """How much each bank vector is used: its weights summed over all sub-vectors."""
    usage, counts = selection.usage(), selection.counts()
    figure, axes = empty_figure(8.0, 3.2)
    axes.bar(np.arange(selection.num_vectors), usage, width=1.0, color=BLUE, linewidth=0)
    even = len(selection.sub_vectors) / selection.num_vectors
    label = f"{even:.2g}: the share of each, were all used alike"
    axes.axhline(even, color=ORANGE, linewidth=1.4, linestyle="--", label=label)
    axes.set(xlabel="bank vector", ylabel="summed weight", xlim=(-0.5, selection.num_vectors - 0.5))
    used = int(np.count_nonzero(counts))
    title = f"{used} of {selection.num_vectors} bank vectors are in use"
    axes.set_title(title, loc="left", color=INK)
    axes.xaxis.set_major_locator(eighths(selection.num_vectors))
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right", borderpad=0,
                bbox_to_anchor=(1.0, 1.0))  # fmt: skip
    figure.alt = (
        f"{title}; vector {usage.argmax()} most, with a summed weight of {usage.max():.1f}, where "
        f"an even share is {even:.2g}."
    )
    return figure


def footprint(first: Selection, last: Selection) -> Figure:
    """What sub-vectors chose at first, and what they choose in the end.

    Laid out as in the VB-LoRA paper: sub-vectors across, bank vectors up. Three kinds of cells:
    chosen at first only, in the end only, and both times.

    Raises:
        SelectionError: the two are not of one adapter.
    """
    kept = 1 - last.churn(first)  # also checks that the two belong together
    before, after = (s.dense() > 0 for s in (first, last))
    figure, axes = empty_figure(9.0, float(np.clip(0.02 * last.num_vectors, 3.4, 8.0)))
    kinds = [
        ("first choice only", before & ~after, ORANGE),
        ("final choice only", after & ~before, "#5aa9d6"),
        ("first and final choice", before & after, "#0a1e5c"),
    ]
    count = len(last.indices)
    size = float(np.clip(9.0 * 60 / count, 1.5, 6.0))
    for label, chosen, colour in kinds:
        row, vector = np.nonzero(chosen)
        axes.plot(
            row, vector, "s", color=colour, markersize=size, markeredgewidth=0,
            linestyle="none", label=f"{label} ({len(row)})",
        )  # fmt: skip
    axes.set(
        xlabel="sub-vector", ylabel="bank vector", xlim=(-0.5, count - 0.5),
        ylim=(-0.5, last.num_vectors - 0.5),
    )  # fmt: skip
    axes.yaxis.set_major_locator(eighths(last.num_vectors))
    title = f"{kept:.0%} of the sub-vectors end with the set they began with"
    axes.set_title(title, loc="left", color=INK)
    figure.legend(
        loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=9,
        markerscale=6 / size,
    )  # fmt: skip
    marks = ", ".join(f"{label} {int(chosen.sum())}" for label, chosen, _ in kinds)
    figure.alt = f"{title}. Marks of {count} sub-vectors: {marks}."
    return figure


def entropy_by_layer(selection: Selection) -> Figure:
    """The entropy of every sub-vector's mixture, layer by layer, with the mean of each layer."""
    names, block = selection.sub_vectors.blocks
    figure, axes = empty_figure(8.0, 3.4)
    entropy, is_B = selection.entropy(), selection.sub_vectors.matrix == "B"
    spread = np.linspace(0.04, 0.36, 29)  # beside each other, so that equal ones are seen
    for label, of, side, colour in (("A", ~is_B, -1, BLUE), ("B", is_B, 1, ORANGE)):
        x = block[of] + side * np.resize(spread, int(of.sum()))
        axes.plot(x, entropy[of], ".", color=colour, alpha=0.5, markersize=4, label=label)
    means, at = selection.entropy_by_layer(), np.arange(len(names))
    axes.hlines(means, at - 0.4, at + 0.4, color=INK, linewidth=2, label="mean")
    most = float(np.log(selection.indices.shape[1]))
    axes.axhline(most, color=FAINT, linewidth=1, linestyle="--", label="equal shares")
    axes.set(ylabel="entropy (nats)", xlabel="layer", ylim=(-0.03 * most, 1.08 * (most or 1)))
    axes.set_xticks(at, [literal(name.removeprefix("layer ")) for name in names])
    axes.set_title("How decided the mixtures are", loc="left", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=4, loc="lower right",
                bbox_to_anchor=(1.0, 1.0), borderpad=0)  # fmt: skip
    each = "; ".join(f"{name} {mean:.2f}" for name, mean in zip(names, means, strict=True))
    figure.alt = f"Mean entropy in nats, where equal shares have {most:.2f}: {each}."
    return figure


def layer_sharing(selection: Selection) -> Figure:
    """How much of what two layers take comes from the same bank vectors, see `sharing`."""
    names = [literal(name.removeprefix("layer ")) for name in selection.sub_vectors.blocks[0]]
    figure, axes = empty_figure(5.4, 4.6)
    sharing = selection.sharing()
    image = axes.imshow(sharing, cmap=WEIGHTS, vmin=0, vmax=1)
    every = max(1, len(names) // 12)
    axes.set_xticks(range(0, len(names), every), names[::every])
    axes.set_yticks(range(0, len(names), every), names[::every])
    axes.set(xlabel="layer", ylabel="layer")
    axes.set_title("Sharing between layers", loc="left", color=INK)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("taken from the same bank vectors", color=INK)
    bar.outline.set_visible(False)
    figure.alt = f"How much {len(names)} layers share with each other, from 0 to 1"
    if len(names) > 1:
        others = sharing[~np.eye(len(names), dtype=bool)]
        figure.alt += f"; two different ones from {others.min():.2f} to {others.max():.2f}"
    return figure


def churn_curve(selections: Sequence[tuple[int, Selection]]) -> Figure:
    """How many sub-vectors change their choice as training goes on.

    Args:
        selections: pairs of a step and the selection after it, two at least (`Trace.selections`).
            One line is against the recorded step before, one against the first.
    """
    steps = [step for step, _ in selections]
    chosen = [selection for _, selection in selections]
    figure, axes = empty_figure(8.0, 3.2)
    latest = [now.churn(before) for before, now in pairwise(chosen)]
    since_first = [now.churn(chosen[0]) for now in chosen[1:]]
    axes.plot(steps[1:], since_first, color=ORANGE, linewidth=2, label="since the first")
    axes.plot(
        steps[1:], latest, color=BLUE, linewidth=1.4, linestyle="--",
        label="since the recorded one before",
    )  # fmt: skip
    axes.set(xlabel="training step", ylabel="sub-vectors with another choice", ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Selection churn", loc="left", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    figure.alt = (
        f"In the end {since_first[-1]:.0%} of the sub-vectors differ from the first step; from the "
        f"recorded step before {latest[0]:.0%} do at first, {latest[-1]:.0%} in the end."
    )
    return figure


def _label_rows(axes: Axes, sub_vectors: SubVectors, body: float) -> None:
    """Write the row groups left of the axes, where they are as tall as print, and rule them off."""
    across = axes.get_yaxis_transform()  # x in shares of the axes' width, y in rows
    inches_per_row = body / len(sub_vectors)
    columns = [(-0.185, "left", 9.0), (-0.115, "left", 8.0), (-0.012, "right", 6.0)]
    rules = []
    for level, first, rows, text in row_groups(sub_vectors):
        x, align, size = columns[level]
        if rows * inches_per_row > 1.2 * size / 72:
            axes.text(
                x, first + (rows - 1) / 2, literal(text), transform=across, fontsize=size,
                va="center", ha=align, color=INK if level == 0 else FAINT,
            )  # fmt: skip
        if first and level < 2:
            start = columns[level][0] if level == 0 else 0.0
            rules.append((level, [(start, first - 0.5), (1.0, first - 0.5)]))
    for level, width in ((1, 0.4), (0, 1.0)):
        lines = [line for at, line in rules if at == level]
        axes.add_collection(
            LineCollection(lines, colors=RULE, linewidths=width, transform=across, clip_on=False),
            autolim=False,
        )
    axes.set_yticks([])
    axes.set_ylabel("sub-vector, by layer, module and matrix")
    axes.yaxis.set_label_coords(-0.2, 0.5)
