"""Figures that explain the method, for the notebooks. As in `plots`: numbers in, a Figure out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vblora_lab.course.drawings import cut_matrices as cut_matrices
from vblora_lab.course.drawings import rank_one_terms as rank_one_terms
from vblora_lab.course.parts import STYLES, frame, panels
from vblora_lab.plots.style import BLUE, FAINT, INK, RULE, LabFigure

if TYPE_CHECKING:
    from matplotlib.axis import Axis

    from vblora_lab.course.paper import Table
    from vblora_lab.planning.plan import Plan
    from vblora_lab.runs.repeats import Repeats

MARKERS = "Dos^vP"
# In the paper's figure methods look as they do in that of our own runs, where they stand in order.
COMPARED = ("VB-LoRA", "LoRA", "LoRA rank 1", "VeRA", "IA3", "full fine-tuning", "Tied-LoRA")
LOOKS = dict(
    zip(COMPARED, zip([*(c for c, _ in STYLES), FAINT], [*MARKERS, "*"], strict=True), strict=True)
)
MEASURES = {"loss": "validation loss (nats per token)", "slot_error_rate": "errors per slot"}
FROZEN = "frozen base"  # as benchmarks/speed.py calls it
FILLS = [(BLUE, ""), ("#f2b880", "//"), ("#4d7c0f", ""), ("#dfe3e8", "\\\\")]


def lines(
    x: Sequence[float] | np.ndarray,
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    alt: str,
    log: str = "",
    points: bool = False,
) -> LabFigure:
    """Lines over one axis, each with its name beside its end.

    Args:
        x: (n,).
        series: (n,) values by name.
        xlabel, ylabel, title: texts.
        alt: what the figure shows, in words.
        log: axes with a logarithmic scale: "x", "y" or "xy".
        points: mark each value.
    """
    figure, (axes,) = panels(8.0, 3.4, 1)
    for (colour, dashes), (name, values) in zip(STYLES, series.items(), strict=False):
        axes.plot(
            x, values, color=colour, linestyle=dashes, linewidth=2.0, label=name,
            marker="o" if points else None, markersize=5,
        )  # fmt: skip
    for side, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if side in log:
            axes.set(**{f"{side}scale": "log"})
            axis.set_tick_params(which="minor", colors=FAINT, labelcolor=INK, labelsize=9)
            plain_numbers(axis)
        elif all(float(tick).is_integer() for tick in axis.get_ticklocs()):
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", color=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.legend(
        fontsize=9, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5),
        handlelength=3.2,
    )  # fmt: skip
    figure.alt = alt
    return figure


def plain_numbers(axis: Axis) -> None:
    """Write 200,000 and 0.01 on a logarithmic axis, and not 2 × 10⁵ and 10⁻².

    Between powers of ten, only where there are few of these: at 2 and 5.
    """

    def between(value: float, _: float) -> str:
        low, high = axis.get_view_interval()
        return f"{value:,.12g}" if high < 100 * low and f"{value:e}"[0] in "25" else ""

    axis.set_major_formatter(lambda value, _: f"{value:,.12g}")
    axis.set_minor_formatter(between)


def step_times(rows: Mapping[str, Mapping[str, float]], title: str) -> LabFigure:
    """How long steps take with each method, as multiples of the frozen base's: a dot for each.

    Args:
        rows: milliseconds by method, "frozen base" among them, by the name of the row.
        title: above the figure.
    """
    figure, (axes,) = panels(9.0, 1.5 + 0.45 * len(rows), 1)
    methods = list(dict.fromkeys(method for times in rows.values() for method in times))
    methods.remove(FROZEN)
    for y in range(len(rows)):
        axes.axhline(y, color=RULE, linewidth=0.8, zorder=0)
    axes.axvline(1, color=FAINT, linewidth=1.2, linestyle="--", label=FROZEN)
    for (colour, _), marker, method in zip(STYLES, "^vDos", methods, strict=False):
        points = [
            (times[method] / times[FROZEN], y)
            for y, times in enumerate(rows.values())
            if method in times
        ]
        axes.plot(
            *zip(*points, strict=True), marker, color=colour, label=method, markersize=8,
            markerfacecolor="none", markeredgewidth=2,  # hollow: none hides another
        )  # fmt: skip
    axes.set_yticks(
        range(len(rows)), [f"{row}\n(base {_ms(times[FROZEN])})" for row, times in rows.items()]
    )
    axes.set(xlabel="time of a step, as a multiple of the frozen base's", ylabel="step")
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, None))
    axes.set_title(title, loc="left", color=INK)
    axes.legend(
        fontsize=9, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    figure.alt = "Times the frozen base. " + "; ".join(
        f"{row}: " + ", ".join(f"{m} {times[m] / times[FROZEN]:.2f}" for m in methods if m in times)
        for row, times in rows.items()
    )
    return figure


def adapted_modules(plans: Mapping[str, Plan]) -> LabFigure:
    """Which modules of the layers each plan adapts: a square per layer and kind, filled if it does.

    Args:
        plans: by a name for each; of one model.
    """
    names = [
        name
        for plan in plans.values()
        for name in (*(t.name for t in plan.targets), *(s.name for s in plan.skipped))
    ]
    places = dict.fromkeys(place for name in names if (place := _in_layer(name)))
    kinds = list(dict.fromkeys(kind for _, kind in places))
    layers = sorted({layer for layer, _ in places})
    figure, row = panels(9.6, 0.9 + 0.28 * len(kinds), len(plans))
    for axes, (title, plan) in zip(row, plans.items(), strict=True):
        adapted = {_in_layer(target.name) for target in plan.targets}
        for layer, kind in places:
            corner = layers.index(layer), kinds.index(kind)
            fill = BLUE if (layer, kind) in adapted else "white"
            box = Rectangle(corner, 1, 1, facecolor=fill, edgecolor=RULE, linewidth=1.0)
            axes.add_patch(box)
        frame(axes, len(layers), len(kinds), title)
        axes.set_xticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
        axes.set(xlabel="layer", aspect="equal")
        axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds if axes is row[0] else [""] * len(kinds))
    row[0].set_ylabel("module")
    figure.alt = "; ".join(f"{title}: {len(plan.targets)} modules" for title, plan in plans.items())
    return figure


def stacked_bytes(rows: Mapping[str, Mapping[str, int]], title: str) -> LabFigure:
    """A bar per file, in the parts that it consists of.

    Args:
        rows: bytes by part, by the name of the file.
        title: above the figure.
    """
    figure, (axes,) = panels(8.0, 0.9 + 0.6 * len(rows), 1)
    kinds = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    fills = dict(zip(kinds, FILLS, strict=False))
    most = max(sum(parts.values()) for parts in rows.values())
    for y, parts in enumerate(rows.values()):
        at = 0
        for part, size in parts.items():
            fill, hatch = fills[part]
            axes.barh(y, size, left=at, height=0.62, color=fill, hatch=hatch, edgecolor="white")
            at += size
        axes.text(at + 0.01 * most, y, f"{at:,}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="bytes", xlim=(0, 1.16 * most), ylabel="file")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title, loc="left", color=INK)
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=fills[kind][0], hatch=fills[kind][1], edgecolor="white")
        for kind in kinds
    ]
    axes.legend(handles, kinds, fontsize=9, frameon=False, labelcolor=INK, loc="center right")
    figure.alt = "; ".join(
        f"{name}: " + ", ".join(f"{part} {size:,} bytes" for part, size in parts.items())
        for name, parts in rows.items()
    )
    return figure


def quality_against_bytes(
    repeats: Repeats, title: str, measures: Mapping[str, str] | None = None
) -> LabFigure:
    """What each method stores and what it achieves: a mark at the mean, a bar of one deviation.

    Args:
        repeats: of methods that store something; others are left out.
        title: above the figure.
        measures: fields of `Result` and what to call them; less is better.
    """
    measures = measures or MEASURES
    methods = [name for name in repeats.results if repeats.mean(name, "stored_bytes")]
    figure, row = panels(9.6, 3.6, len(measures))
    for axes, (measure, label) in zip(row, measures.items(), strict=True):
        for (colour, _), marker, name in zip(STYLES, MARKERS, methods, strict=False):
            deviation = repeats.deviation(name, measure)
            axes.errorbar(
                repeats.mean(name, "stored_bytes"), repeats.mean(name, measure),
                yerr=None if np.isnan(deviation) else deviation, fmt=marker, color=colour,
                label=name, markersize=8, markerfacecolor="none", markeredgewidth=2, capsize=4,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="stored bytes", ylabel=label)
        axes.margins(x=0.12, y=0.15)
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))  # a deviation may reach below what can be
        axes.grid(axis="y", color=RULE, linewidth=0.6)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12)
    row[-1].legend(
        fontsize=9, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    figure.alt = f"{title}. " + "; ".join(
        f"{name} stores {repeats.mean(name, 'stored_bytes'):,.0f} bytes: "
        + ", ".join(f"{label} {repeats.mean(name, m):.3f}" for m, label in measures.items())
        for name in methods
    )
    return figure


def scores_of_the_paper(tables: Sequence[Table], source: str) -> LabFigure:
    """Score against stored numbers, one panel for each table; methods look alike in all of them.

    Args:
        tables: as `paper.TABLES`.
        source: where they are from, for the title.
    """
    figure, row = panels(9.6, 3.0, len(tables))
    methods = list(dict.fromkeys(name for table in tables for name, _, _ in table.rows))
    for axes, table in zip(row, tables, strict=True):
        for name, millions, score in table.rows:
            colour, marker = LOOKS[name]
            axes.plot(
                1e6 * millions, score, marker, color=colour, label=name, markersize=8,
                markerfacecolor="none", markeredgewidth=2,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="stored numbers", ylabel=table.measure)
        axes.margins(x=0.2, y=0.15)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_title(f"Table {table.number}\n{table.model}", loc="left", color=INK, fontsize=9)
    known = {
        name: handle
        for axes in row
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [known[name] for name in methods], methods, loc="outside lower center", ncols=len(methods),
        fontsize=9, frameon=False, labelcolor=INK,
    )  # fmt: skip
    figure.suptitle(f"From {source}, not measured here", x=0.01, ha="left", color=INK, fontsize=12)
    figure.alt = f"From {source}. " + "; ".join(
        f"table {table.number}, {table.model}, {table.measure}: "
        + ", ".join(f"{name} {score} with {size} million" for name, size, score in table.rows)
        for table in tables
    )
    return figure


def _in_layer(name: str) -> tuple[int, str] | None:
    """Number of the layer and last part of the name, of a module in a layer."""
    found = re.search(r"\.(\d+)\.", name)
    return (int(found[1]), name.rpartition(".")[2]) if found else None


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"
