"""A run as figures that stay: its losses, those of several, and all of it on a page.

Pure, as all of this room: numbers in, a `matplotlib.figure.Figure` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from vblora_lab.plots.bank import draw_selection, height_of_rows
from vblora_lab.plots.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    RULE,
    STYLES,
    LabFigure,
    empty_figure,
    literal,
    plain,
)
from vblora_lab.runs.trace import Trace

SMOOTH_OVER = 10
"""How many steps the smoothed loss is the mean of."""

_FACTS_IN_A_LINE = 4
_LONGEST_FACT = 34  # letters that a column has room for
_NOT_YET = {"training": "no step yet: run the notebook"}


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
    figure, axes = empty_figure(8.0, 3.6)
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
    figure, axes = empty_figure(8.0, 3.6)
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
        body = height_of_rows(selection)
        heights.append(body + 1.0)
    figure = LabFigure(figsize=(9.0, sum(heights)), layout="constrained", facecolor="white")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _write_facts(parts[0], title, facts)
    if len(trace.steps):
        _draw_losses(plain(parts[1].add_subplot()), trace, SMOOTH_OVER)
    if selection is not None:
        draw_selection(plain(parts[-1].add_subplot()), selection, body)
    numbers = "; ".join(f"{name} {value}" for name, value in facts.items())
    figure.alt = f"{title}: {numbers}."
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
