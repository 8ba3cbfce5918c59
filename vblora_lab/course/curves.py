"""Figures of what `benchmarks/pareto.py` measured: stored bytes against loss, and controls."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vblora_lab.course.measured import Control, Point
from vblora_lab.plots.style import BLUE, FAINT, INK, RULE, STYLES, LabFigure, empty_figure

LINES = ("VB-LoRA", "VB-LoRA, q and v", "LoRA", "LoRA, q and v")
"""Families whose sizes are joined by a line; the others have one size or two."""
HOLLOW = "white"
_STYLES = dict(zip(LINES, (STYLES[0], STYLES[4], STYLES[1], STYLES[3]), strict=True))


def quality_at_each_size(points: Sequence[Point], title: str) -> LabFigure:
    """Loss against bytes: a mark at the mean of the final seeds, a bar over all seeds.

    A hollow mark has no final seed yet: its loss is that of the search which chose its rates.

    Args:
        points: of one base and one precision.
        title: above the figure.
    """
    figure, axes = empty_figure(9.0, 5.0)
    families = dict.fromkeys([*LINES, *(point.family for point in points)])
    for family in families:
        mine = sorted((p for p in points if p.family == family), key=lambda point: point.size)
        if mine:
            _draw_family(axes, family, mine)
    for point in points:
        if point.family not in LINES:
            _label(axes, point, point.name, 8, below=_is_best_yet(point, points))
    for family in LINES:
        mine = sorted((p for p in points if p.family == family), key=lambda point: point.size)
        if mine:  # VB-LoRA's lines begin where no other does, LoRA's end there
            end = mine[0] if family.startswith("VB") else mine[-1]
            _label(axes, end, family, 9, below=family == "VB-LoRA")
    alone = any(not point.losses.others for point in points)
    axes.text(
        0.99, 0.98,
        "bars: all seeds" + "; hollow: the seed that chose the rates, alone" * alone, fontsize=8,
        color=FAINT, transform=axes.transAxes, ha="right", va="top",
    )  # fmt: skip
    axes.set(xscale="log", xlabel="stored bytes", ylabel="validation loss (nats per token)")
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)  # names are written over the grid
    axes.margins(x=0.07, y=0.08)
    axes.set_title(title, loc="left", color=INK)
    figure.alt = f"{title}. " + "; ".join(
        f"{p.name}: {p.size:,} bytes, loss {p.losses.mean:.3f}" for p in points
    )
    return figure


def _draw_family(axes: Axes, family: str, mine: Sequence[Point]) -> None:
    colour, dashes, mark = _STYLES.get(family, (FAINT, "none", "o"))
    joined = family in LINES
    sizes, losses = [p.size for p in mine], [p.losses.mean for p in mine]
    axes.plot(sizes, losses, color=colour, linestyle=dashes, linewidth=1.6, zorder=2)
    for point in mine:
        axes.plot(
            [point.size] * 2, [min(point.losses.all), max(point.losses.all)], color=colour,
            linewidth=1.2, zorder=2,
        )  # fmt: skip
        axes.plot(
            point.size, point.losses.mean, mark, color=colour, markersize=6 if joined else 5,
            markerfacecolor=colour if point.losses.others else HOLLOW, zorder=3,
        )  # fmt: skip


def _label(axes: Axes, point: Point, text: str, size: int, below: bool) -> None:
    """A name to the right of a mark, or to the lower left of it."""
    colour = _STYLES.get(point.family, (FAINT,))[0]
    axes.annotate(
        text, (point.size, point.losses.mean), xytext=(-6, -10) if below else (8, -3),
        textcoords="offset points", ha="right" if below else "left", color=colour, fontsize=size,
        fontweight="bold" if point.family in LINES else "normal", zorder=2.5,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


def _is_best_yet(point: Point, points: Sequence[Point]) -> bool:
    """Whether nothing smaller has a lower loss."""
    return all(p.losses.mean >= point.losses.mean for p in points if p.size <= point.size)


def losses_of_controls(controls: Sequence[Control], title: str) -> LabFigure:
    """A row for each control, a dot for each run; hollow where it chose the learning rates."""
    figure, axes = empty_figure(8.4, 0.9 + 0.42 * len(controls))
    most = max(max(control.losses.all) for control in controls)
    least = min(min(control.losses.all) for control in controls)
    for y, control in enumerate(controls):
        losses = control.losses
        axes.plot(losses.others, [y] * len(losses.others), "o", color=BLUE, markersize=7)
        if losses.searched is not None:
            axes.plot(losses.searched, y, "o", color=BLUE, markersize=7, markerfacecolor="none")
        axes.annotate(
            f"{losses.mean:.3f}", (max(losses.all), y), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(controls)), [control.name for control in controls])
    axes.set(ylim=(len(controls) - 0.5, -0.5), ylabel="control")
    axes.set(xlabel="validation loss (nats per token)")
    axes.set_xlim(least - 0.05 * (most - least), most + 0.12 * (most - least))
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_title(title, loc="left", color=INK)
    figure.alt = f"{title}. " + "; ".join(f"{c.name}: {c.losses.mean:.3f}" for c in controls)
    return figure


def _short(size: float, _: object) -> str:
    for unit, name in ((1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size:g} B"
