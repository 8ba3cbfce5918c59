"""A plan as a figure that stays: sizes on log axes, and what is done with each module.

Pure, as `plots`: a plan in, a `matplotlib.figure.Figure` out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from vblora_lab.planning.rows import (
    ABSENT,
    ADAPTED,
    LEFT,
    MISFIT,
    MIXED,
    SAVED,
    Bar,
    ModuleRow,
    byte_bars,
    module_rows,
    parameter_bars,
)
from vblora_lab.planning.views import heading, settings
from vblora_lab.plots.style import BLUE, FAINT, INK, RULE, LabFigure, literal

if TYPE_CHECKING:
    from vblora_lab.planning.plan import Plan

# Fill, hatch and meaning of each mark: the hatch says the same as the colour.
STYLES = {
    ADAPTED: (BLUE, "", "adapted"),
    SAVED: ("#7fb3d5", "....", "trained whole"),
    MISFIT: ("#f6d3bd", "xxxx", "named, but doesn't fit"),
    MIXED: ("#d6e6f2", "////", "some of them"),
    LEFT: ("white", "", "left as it is"),
}
ROW_INCHES = 0.23


def plan_figure(plan: Plan, order: Iterable[str] = ()) -> Figure:
    """What a config would do to a model.

    Args:
        plan: of any model.
        order: names of modules, in the order in which the figure lists them.
    """
    rows = module_rows(plan, order)
    tall = max(1.0, ROW_INCHES * len(rows))
    figure = LabFigure(figsize=(10.0, 2.6 + tall), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(hspace=0.06)  # type: ignore[union-attr, call-arg]
    grid = figure.add_gridspec(2, 2, height_ratios=[1.5, tall])
    verdict = "fits" if plan.fits else f"does not fit: {plan.problems[0].message}"
    title = f"{heading(plan)}: {verdict}"
    short = title if len(title) <= 110 else f"{title[:109]}…"
    figure.suptitle(
        literal(f"{short}\n{settings(plan)}"), x=0.01, ha="left", fontsize=11, color=INK
    )
    _draw_sizes(figure.add_subplot(grid[0, 0]), parameter_bars(plan), "parameters")
    _draw_sizes(figure.add_subplot(grid[0, 1]), byte_bars(plan), "bytes")
    _draw_modules(figure.add_subplot(grid[1, :]), rows)
    figure.alt = (
        f"{title}. {len(plan.targets)} modules are adapted, {len(plan.skipped)} left as they are. "
        f"{plan.trained_parameters:,} parameters are trained, beside {plan.base_parameters:,} of "
        f"the base model; {plan.stored_bytes:,} bytes are stored."
    )
    return figure


def _draw_sizes(axes: Axes, bars: list[Bar], unit: str) -> None:
    """Dots, since the length of a bar would mean nothing on a log axis."""
    colours = [BLUE if bar.is_chosen else "white" for bar in bars]
    values = [max(bar.value, 1) for bar in bars]  # nothing is no place on a log axis
    low, high = min(values), max(values)
    axes.set(xscale="log", xlim=(max(low / 20, 0.4), high * 60), xlabel=f"{unit} (log scale)")
    axes.hlines(range(len(bars)), *axes.get_xlim(), color=RULE, linewidth=0.8, zorder=0)
    axes.scatter(values, range(len(bars)), c=colours, s=52, edgecolors=BLUE, zorder=4,
                 clip_on=False)  # fmt: skip
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    for position, bar in enumerate(bars):
        axes.annotate(
            bar.text, (values[position], position), xytext=(8, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.label.set(color=INK, size=9)


def _draw_modules(axes: Axes, rows: list[ModuleRow]) -> None:
    """One line a module, one cell a layer; modules outside of layers have one cell."""
    layers = max((len(row.marks) for row in rows), default=1) or 1
    for line, row in enumerate(rows):
        for layer, mark in enumerate(row.marks):
            if mark == ABSENT:
                continue
            fill, hatch, _ = STYLES[mark]
            corner = (layer - 0.5, line - 0.36)
            cell = Rectangle(corner, 0.94, 0.72, facecolor=fill, hatch=hatch, edgecolor=FAINT)
            cell.set_linewidth(0.5)
            axes.add_patch(cell)
        beside = row.note if len(row.note) <= 60 else f"{row.note[:59]}…"
        axes.text(
            1.01, line, literal(beside), transform=axes.get_yaxis_transform(), va="center",
            fontsize=8, color=INK if ADAPTED in row.marks else FAINT,
        )  # fmt: skip
    sizes = [f" ({row.sizes})" if "→" in row.sizes else "" for row in rows]
    labels = [f"{'    ' * row.depth}{row.label}{s}" for row, s in zip(rows, sizes, strict=True)]
    axes.set_yticks(range(len(rows)), map(literal, labels), ha="left", fontsize=8.5)
    longest = max(map(len, labels), default=0)
    axes.tick_params(axis="y", length=0, pad=5.2 * longest, labelcolor=INK)
    axes.tick_params(axis="x", colors=FAINT, labelcolor=INK, labelsize=8.5)
    axes.set(xlim=(-0.6, layers - 0.4), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel("layer; modules outside of layers have one cell", color=INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[:].set_visible(False)
    used = {mark for row in rows for mark in row.marks}
    handles = [
        Patch(facecolor=fill, hatch=hatch, edgecolor=FAINT, label=meaning)
        for mark, (fill, hatch, meaning) in STYLES.items()
        if mark in used
    ]
    axes.legend(
        handles=handles, ncols=len(handles), fontsize=8.5, frameon=False, labelcolor=INK,
        loc="lower left", bbox_to_anchor=(0, 1.0), borderpad=0,
    )  # fmt: skip
