"""Figures that stay: a run's loss, and what its sub-vectors take from the bank.

Every function is pure: numbers in, a `matplotlib.figure.Figure` out. Nothing here touches pyplot,
so nothing is shown, no global state changes, and any thread may draw.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

from vblora_lab.inspection.selection import row_groups

if TYPE_CHECKING:
    from vblora_lab.inspection.selection import Selection, SubVectors
    from vblora_lab.runs.trace import Trace

INK, FAINT, RULE = "#1f2933", "#5f6b7a", "#c9d1d9"
BLUE, ORANGE = "#1d6fa5", "#c2570c"
STYLES = (
    (BLUE, "-", "D"), (ORANGE, "--", "s"), ("#2f7d4f", "-.", "^"), ("#8a1c62", ":", "o"),
    (INK, (0, (6, 1, 1, 1, 1, 1)), "v"), ("#6212b2", (0, (1, 1)), "P"),
)  # fmt: skip
"""Colour, dashes and mark of each run in a figure of several."""
SMOOTH_OVER = 10
"""How many steps the smoothed loss is the mean of."""

WEIGHTS = LinearSegmentedColormap.from_list(
    "weights", colormaps["YlGnBu"](np.linspace(0.3, 1.0, 256))
)
"""Pale green to dark blue. Lightness falls steadily, so it reads without colour vision and in grey;
it starts away from white, which means "not chosen"."""

_FACTS_IN_A_LINE = 4
_LONGEST_FACT = 34  # letters that a column has room for
_NOT_YET = {"training": "no step yet: run the notebook"}
_CSS_INCH = 96  # pixels in an inch of a web page
_PIXEL_RATIO = 2  # PNG pixels for each of them, so that a figure is sharp on a dense screen


class LabFigure(Figure):
    """A `Figure` that a notebook shows as a PNG, whether or not pyplot was ever imported.

    Attributes:
        alt: what it shows, in words, for those who can't see it.
    """

    alt = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, int | str]]:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=_CSS_INCH * _PIXEL_RATIO)
        width, height = (round(inches * _CSS_INCH) for inches in self.get_size_inches())
        return png.getvalue(), {"width": width, "height": height, "alt": self.alt}


def literal(name: str) -> str:
    """A name as Matplotlib has to be told it: what lies between two "$" would be a formula."""
    return name.replace("$", r"\$")


def smooth(losses: np.ndarray, over: int = SMOOTH_OVER) -> np.ndarray:
    """Mean of each loss and the `over - 1` before it (of as many as there are, at the start).

    Args:
        losses: (n,) one loss per step.
        over: Length of the window, in steps.

    Returns:
        (n,) float64.
    """
    sums = np.concatenate([[0.0], np.cumsum(losses, dtype=np.float64)])
    end = np.arange(1, len(sums))
    start = np.maximum(end - over, 0)
    return (sums[end] - sums[start]) / (end - start)


class Losses(Protocol):
    """What a loss curve is drawn of: a `Trace` has it, and a `LossChart`.

    Steps and losses (n,), evaluation steps and losses (m,); losses in nats per token. base: the
    name of the base model, "" if it isn't known.
    """

    @property
    def steps(self) -> np.ndarray: ...
    @property
    def losses(self) -> np.ndarray: ...
    @property
    def eval_steps(self) -> np.ndarray: ...
    @property
    def eval_losses(self) -> np.ndarray: ...
    @property
    def base(self) -> str: ...


def loss_curve(trace: Losses, smooth_over: int = SMOOTH_OVER) -> Figure:
    """Training loss of every step, its mean over the last steps, and the evaluation losses.

    Args:
        trace: a `Trace`, or another holder of `Losses`.
        smooth_over: How many steps that mean is taken over.
    """
    figure, axes = _figure(8.0, 3.6)
    _draw_losses(axes, trace, smooth_over)
    if len(trace.losses):
        mean = smooth(trace.losses)
        of = f" of {trace.base}" if trace.base else ""
        figure.alt = f"Training loss{of} from {mean[0]:.2f} to {mean[-1]:.2f} nats per token."
    return figure


def _draw_losses(axes: Axes, trace: Losses, smooth_over: int) -> None:
    axes.plot(trace.steps, trace.losses, color=BLUE, alpha=0.35, linewidth=1, label="each batch")
    means = smooth(trace.losses, smooth_over)
    label = f"mean of the last {smooth_over}"
    axes.plot(trace.steps, means, color=BLUE, linewidth=2.2, label=label)
    if len(trace.eval_steps):
        axes.plot(
            trace.eval_steps, trace.eval_losses, color=ORANGE, linestyle="none", marker="D",
            markersize=6.5, markeredgecolor="white", label="validation", zorder=4,
        )  # fmt: skip
    axes.set(xlabel="training step", ylabel="loss (nats per token)")
    axes.set_title("Training loss", loc="left", color=INK)
    axes.set_title(literal(trace.base), loc="right", color=FAINT, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.legend(labelcolor=INK, fontsize=9, edgecolor="none", framealpha=1.0)


def loss_curves(traces: Mapping[str, Losses], smooth_over: int = SMOOTH_OVER) -> Figure:
    """The smoothed training losses of several runs, and their evaluation losses, by name.

    Runs differ in colour, in dashes and in the shape of their marks. The base model stands above
    them, or, where they have several, beside each name.
    `smooth_over`: as in `loss_curve`.
    """
    figure, axes = _figure(8.0, 3.6)
    bases = {trace.base for trace in traces.values()}
    of_one = len(bases) == 1
    base = next(iter(bases)) if of_one else ""
    axes.set_title(literal(base), loc="right", color=FAINT, fontsize=9)
    for (name, trace), (colour, dashes, mark) in zip(traces.items(), cycle(STYLES), strict=False):
        of = "" if of_one or not trace.base else f" · {trace.base}"
        axes.plot(
            trace.steps, smooth(trace.losses, smooth_over), color=colour, linestyle=dashes,
            linewidth=2, label=literal(f"{name}{of}"),
        )  # fmt: skip
        axes.plot(
            trace.eval_steps, trace.eval_losses, color=colour, linestyle="none", marker=mark,
            markersize=6.5, markeredgecolor="white", zorder=4, clip_on=False,
        )  # fmt: skip
    axes.plot([], [], color=FAINT, linestyle="none", marker="D", label="validation (same colour)")
    label = f"loss (nats per token)\nmean of the last {smooth_over} batches"
    axes.set(xlabel="training step", ylabel=label)
    axes.set_title("Training loss by run", loc="left", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.legend(labelcolor=INK, fontsize=9, edgecolor="none", framealpha=1.0, handlelength=3)
    means = {name: smooth(t.losses, smooth_over) for name, t in traces.items() if len(t.losses)}
    figure.alt = "Training loss, in nats per token. " + "; ".join(
        f"{name}: from {mean[0]:.2f} to {mean[-1]:.2f}" for name, mean in means.items()
    )
    return figure


def selection_heatmap(selection: Selection) -> Figure:
    """One row for each sub-vector, one column for each bank vector; colour is the weight.

    A row has `topk` coloured cells, the bank vectors it mixes; white means not chosen. Where rows
    are thinner than a line of print, their cells are drawn taller than the row: none is lost.
    """
    body = _height_of_rows(selection)
    figure, axes = _figure(9.0, body + 1.1)
    _draw_selection(axes, selection, body)
    figure.alt = (
        f"{len(selection.sub_vectors)} sub-vectors as rows, {selection.num_vectors} bank vectors "
        f"as columns; each row has {selection.indices.shape[1]} coloured cells, the vectors that "
        "it mixes."
    )
    return figure


def _height_of_rows(selection: Selection) -> float:
    """Of a heatmap, in inches."""
    return float(np.clip(3.0 + 0.008 * len(selection.sub_vectors), 3.6, 11.0))


def _draw_selection(axes: Axes, selection: Selection, body: float) -> None:
    """The map, on axes that are `body` inches tall."""
    rows, columns = len(selection.sub_vectors), selection.num_vectors
    # Ascending weight, so that where thin rows overlap the strongest cell lies on top.
    weights = selection.weights.ravel()
    order = np.argsort(weights, kind="stable")
    row = np.repeat(np.arange(rows), selection.indices.shape[1])[order]
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
    axes.xaxis.set_major_locator(_eighths(columns))
    _label_rows(axes, selection.sub_vectors, body)
    axes.set_title("What each sub-vector takes from the bank", loc="left", color=INK)
    bar = axes.figure.colorbar(cells, ax=axes, aspect=body * 6, pad=0.015, fraction=0.02)
    bar.set_label("weight in the mixture (white: not chosen)", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)


def run_summary(trace: Trace, title: str, facts: Mapping[str, str]) -> Figure:
    """A run on one page: facts, the loss, and what sub-vectors take from the bank at its end.

    Args:
        trace: of the run; an empty one leaves the facts, and a line that says so.
        title: the headline.
        facts: name -> value. What is longer than a column is cut off.
    """
    selection = trace.selections[-1][1] if trace.selections else None
    if not len(trace.steps):
        facts = {**facts, **_NOT_YET}
    lines = 1 + -(-len(facts) // _FACTS_IN_A_LINE)
    heights = [0.15 + 0.42 * lines]
    if len(trace.steps):
        heights.append(3.3)
    if selection is not None:
        body = _height_of_rows(selection)
        heights.append(body + 1.0)
    figure = LabFigure(figsize=(9.0, sum(heights)), layout="constrained", facecolor="white")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _write_facts(parts[0], title, facts)
    if len(trace.steps):
        _draw_losses(plain(parts[1].add_subplot()), trace, SMOOTH_OVER)
    if selection is not None:
        _draw_selection(plain(parts[-1].add_subplot()), selection, body)
    told = "; ".join(f"{name} {value}" for name, value in facts.items())
    figure.alt = f"{title}: {told}."
    return figure


def _write_facts(figure: SubFigure, title: str, facts: Mapping[str, str]) -> None:
    """A headline, and below it names and values in columns."""
    height = figure.bbox.height / figure.figure.dpi  # inches
    plain_text: dict[str, Any] = {"va": "top", "parse_math": False}  # a name may have a "$"
    figure.text(0.01, 1 - 0.08 / height, title, fontsize=13, weight="bold", color=INK, **plain_text)
    for i, (name, value) in enumerate(facts.items()):
        line, column = divmod(i, _FACTS_IN_A_LINE)
        x, y = 0.01 + column / _FACTS_IN_A_LINE, 1 - (0.42 * (line + 1)) / height
        figure.text(x, y, name, fontsize=8, color=FAINT, **plain_text)
        if len(value) > _LONGEST_FACT:
            value = f"{value[: _LONGEST_FACT - 1]}…"
        figure.text(x, y - 0.14 / height, value, fontsize=9.5, color=INK, **plain_text)


def usage_histogram(selection: Selection) -> Figure:
    """How much each bank vector is used: its weights summed over all sub-vectors."""
    usage, counts = selection.usage(), selection.counts()
    figure, axes = _figure(8.0, 3.2)
    axes.bar(np.arange(selection.num_vectors), usage, width=1.0, color=BLUE, linewidth=0)
    even = len(selection.sub_vectors) / selection.num_vectors
    label = f"{even:.2g}: the share of each, were all used alike"
    axes.axhline(even, color=ORANGE, linewidth=1.4, linestyle="--", label=label)
    axes.set(xlabel="bank vector", ylabel="summed weight", xlim=(-0.5, selection.num_vectors - 0.5))
    used = int(np.count_nonzero(counts))
    title = f"{used} of {selection.num_vectors} bank vectors are in use"
    axes.set_title(title, loc="left", color=INK)
    axes.xaxis.set_major_locator(_eighths(selection.num_vectors))
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
    figure, axes = _figure(9.0, float(np.clip(0.02 * last.num_vectors, 3.4, 8.0)))
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
    axes.yaxis.set_major_locator(_eighths(last.num_vectors))
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
    figure, axes = _figure(8.0, 3.4)
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
    figure, axes = _figure(5.4, 4.6)
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
    figure, axes = _figure(8.0, 3.2)
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


def _eighths(columns: int) -> MultipleLocator:
    """Ticks at eighths of the bank: its sizes are powers of two more often than of ten."""
    return MultipleLocator(max(1, columns // 8))


def _figure(width: float, height: float) -> tuple[LabFigure, Axes]:
    """An empty figure of that size in inches, with one plain pair of axes."""
    figure = LabFigure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, plain(figure.add_subplot())


def plain(axes: Axes) -> Axes:
    """The same axes in this package's ink, without a frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=10)
    axes.yaxis.label.set(color=INK, size=10)
    return axes
