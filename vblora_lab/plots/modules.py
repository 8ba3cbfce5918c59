"""What modules take from the bank, beside what chance would give them.

Pure, as all of this room: numbers in, a `matplotlib.figure.Figure` out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vblora_lab.inspection.chance import (
    STANDS_OUT,
    ModuleUse,
    kept_choices,
    module_use,
    modules_of,
    notice,
)
from vblora_lab.inspection.selection import Selection
from vblora_lab.plots.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    RULE,
    WEIGHTS,
    LabFigure,
    eighths,
    literal,
    plain,
)

STRONGEST = 3 * STANDS_OUT
"""Standard deviations above chance from which on all cells are as dark."""
_GREYS = np.linspace((1, 1, 1, 1), (0.80, 0.83, 0.86, 1), 85)  # up to STANDS_OUT: what chance does
AGAINST_CHANCE = ListedColormap(
    np.concatenate([_GREYS, WEIGHTS(np.linspace(0.15, 1, 171))]), "against chance"
)
"""White to grey for what chance does, then colour: from a third of the scale on.

:meta hide-value:
"""


def module_heatmap(selection: Selection, start: Selection | None = None) -> Figure:
    """One row for each module, one column for each bank vector; colour is what exceeds chance.

    Above: the weight of each bank vector in the whole model, and the band in which chance leaves 19
    of 20. With `start`, what the same adapter chose at the start: triangles for the cells
    that stand out now and did not then, and which part of each module's choices has been kept.

    Raises:
        SelectionError: `start` is of another adapter.
    """
    use, told = module_use(selection), notice(selection, start)
    module = modules_of(selection.sub_vectors)[1]
    order = list(dict.fromkeys(module[selection.row_order()].tolist()))
    tall = float(np.clip(0.17 * len(order), 1.6, 9.0))
    figure = LabFigure(figsize=(9.0, tall + 2.3), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(
        2, 2, height_ratios=(0.9, tall), width_ratios=(1, 0.14 if start else 0.001)
    )
    above = plain(figure.add_subplot(grid[0, 0]))
    body = plain(figure.add_subplot(grid[1, 0], sharex=above))
    _draw_usage(above, use)
    _draw_cells(body, use, order)
    if start is not None:
        _mark_new(body, (use.stands_out & ~module_use(start).stands_out)[order])
        kept = np.bincount(module, kept_choices(selection, start)) / use.sizes
        _draw_kept(plain(figure.add_subplot(grid[1, 1], sharey=body)), kept[order])
    caption = textwrap.fill(literal(f"{told.headline} {told.details}"), 112)
    figure.suptitle(caption, x=0.01, ha="left", color=INK, fontsize=9.5)
    size = f"{len(order)} modules as rows, {told.num_vectors} bank vectors as columns"
    figure.alt = f"{size}. {told.headline} {told.details}"
    return figure


def _draw_usage(axes: Axes, use: ModuleUse) -> None:
    """Bars of the whole model's use, with what chance would give."""
    usage, expected = use.weights.sum(axis=0), float(use.expected.sum())
    spread = float(np.linalg.norm(use.spread))  # variances of independent modules add up
    axes.bar(np.arange(len(usage)), usage, width=0.9, color=BLUE, linewidth=0)
    axes.axhspan(
        max(0, expected - 2 * spread), expected + 2 * spread, color=ORANGE, alpha=0.25, linewidth=0
    )
    axes.axhline(expected, color=ORANGE, linewidth=1, linestyle="--")
    axes.tick_params(labelbottom=False, length=0)
    axes.set_ylabel("summed\nweight", fontsize=8)
    axes.set_title("band: chance", loc="left", color=ORANGE, fontsize=8, pad=2)


def _draw_cells(axes: Axes, use: ModuleUse, order: Sequence[int]) -> None:
    image = axes.imshow(
        use.excess[order], cmap=AGAINST_CHANCE, norm=Normalize(0, STRONGEST), aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    names = [use.names[i].replace("self_attn.", "") for i in order]
    size = float(np.clip(440 / len(order), 4, 8))
    axes.set_yticks(range(len(order)), [literal(name) for name in names], fontsize=size)
    axes.tick_params(axis="y", length=0)
    layers = [name.partition(" · ")[0] for name in names]
    for i in range(1, len(order)):
        if layers[i] != layers[i - 1] and " · " in names[i]:
            axes.axhline(i - 0.5, color=RULE, linewidth=0.8)
    axes.set(xlabel="bank vector", ylabel="module, in the order of use")
    axes.xaxis.set_major_locator(eighths(use.weights.shape[1]))
    bar = axes.figure.colorbar(
        image, ax=axes, location="bottom", aspect=60, pad=0.02, shrink=0.6, extend="max"
    )
    bar.set_label("standard deviations above chance (grey: as chance does)", color=INK, fontsize=8)
    bar.set_ticks([0, STANDS_OUT, 2 * STANDS_OUT, STRONGEST])
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)


def _mark_new(axes: Axes, new: np.ndarray) -> None:
    """Triangles on cells that stand out now and did not at the start."""
    row, column = np.nonzero(new)
    axes.plot(column, row, "^", color=ORANGE, markersize=3.5, markeredgewidth=0)


def _draw_kept(axes: Axes, kept: np.ndarray) -> None:
    axes.barh(np.arange(len(kept)), kept, height=0.7, color=BLUE, linewidth=0)
    axes.set(xlim=(0, 1), xlabel="choices kept\nsince the start")
    axes.xaxis.label.set_fontsize(8)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xticks([0, 1])
    axes.tick_params(axis="y", labelleft=False, length=0)
