"""What a search came to, as a figure that stays: bytes against loss.

Pure, as `plots`: the result of a search in, a `matplotlib.figure.Figure` out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from vblora_lab.plots.style import BLUE, FAINT, INK, ORANGE, RULE, empty_figure, literal
from vblora_lab.tables import count, in_bytes, readable

if TYPE_CHECKING:
    from vblora_lab.train.tune_result import Tuned

STYLES = {"vblora": ("VB-LoRA", BLUE, "o"), "lora": ("LoRA", ORANGE, "s")}


def tune_figure(tuned: Tuned) -> Figure:
    """All trials that ran to their end as dots, the front as a line, the budget as a vertical line.

    Args:
        tuned: the result of `vblora_lab.tune`.
    """
    figure, axes = empty_figure(8.0, 4.2)
    for method, (label, colour, mark) in STYLES.items():
        done = [t for t in tuned.trials if t.method == method and not math.isnan(t.loss)]
        if done:
            axes.plot(
                [t.bytes for t in done], [t.loss for t in done], color=colour, marker=mark,
                linestyle="none", markersize=6.5, markeredgecolor="white", label=label, zorder=3,
            )  # fmt: skip
    front, best = tuned.front, tuned.best
    axes.plot(
        [t.bytes for t in front], [t.loss for t in front], color=INK, linewidth=1.4, label="front"
    )
    axes.axvline(tuned.bytes, color=FAINT, linestyle="--", linewidth=1.2, label="budget")
    axes.annotate(
        best.name, (best.bytes, best.loss), (-6, -12), textcoords="offset points", ha="right",
        fontsize=9, color=INK,
    )  # fmt: skip
    _label(axes, tuned)
    cut = sum(math.isnan(trial.loss) for trial in tuned.trials)
    figure.alt = (
        f"{count(len(tuned.trials), 'trial')}, {cut} of them without a loss at the end. The best, "
        f"{best.name}, has a validation loss of {best.loss:.3f} nats per token with "
        f"{in_bytes(best.bytes)}, of {in_bytes(tuned.bytes)} that it might have."
    )
    return figure


def _label(axes: Axes, tuned: Tuned) -> None:
    axes.set(
        xscale="log",
        xlabel="bytes of the adapter's file (log scale)",
        ylabel="validation loss (nats per token)",
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: readable(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("Loss by size", loc="left", color=INK)
    of = f"{tuned.settings.get('base', '')} · {tuned.settings.get('task', '')}"
    axes.set_title(literal(of.strip(" ·")), loc="right", color=FAINT, fontsize=9)
    axes.margins(y=0.12)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.legend(labelcolor=INK, fontsize=9, edgecolor="none", framealpha=1.0)
