"""What a search came to, as a figure that stays: bytes against loss.

Pure, as `plots`: the result of a search in, a `matplotlib.figure.Figure` out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vblora_lab.plots.style import BLUE, FAINT, INK, ORANGE, RULE, empty_figure, literal
from vblora_lab.tables import count, in_bytes, readable

if TYPE_CHECKING:
    from vblora_lab.train.tune_result import Tuned

STYLES = {"vblora": ("VB-LoRA", BLUE, "o"), "lora": ("LoRA", ORANGE, "s")}
SEVERAL_TICKS = 8  # how many times its beginning the end of an axis is, to mark powers of two


def tune_figure(tuned: Tuned) -> Figure:
    """All trials as dots, the front as a line, the budget as a vertical line.

    A hollow dot is a trial that was cut short, at the last loss that it had. One that failed, as
    with rates that made its loss explode, is left out.

    Args:
        tuned: the result of `vblora_lab.tune`.
    """
    figure, axes = empty_figure(8.0, 4.2)
    for method, (label, colour, mark) in STYLES.items():
        of_method = [trial for trial in tuned.trials if trial.method == method]
        done = [trial for trial in of_method if not math.isnan(trial.loss)]
        cut = [trial for trial in of_method if trial.state == "cut short"]
        for trials, face, end in ((done, colour, ""), (cut, "white", ", cut short")):
            if trials:
                axes.plot(
                    [t.bytes for t in trials], [t.last_loss for t in trials], linestyle="none",
                    marker=mark, markersize=6.5, markerfacecolor=face, markeredgecolor=colour,
                    label=f"{label}{end}", zorder=3,
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
    unfinished = sum(math.isnan(trial.loss) for trial in tuned.trials)
    figure.alt = (
        f"{count(len(tuned.trials), 'trial')}, {unfinished} of them cut short or failed. The best, "
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
    low, high = axes.get_xlim()
    if high < SEVERAL_TICKS * low:  # too few powers of two, or none, to read the axis by
        axes.xaxis.set_major_locator(MaxNLocator(6))
    else:
        axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: readable(size)))
    axes.set_title("Loss by size", loc="left", color=INK)
    of = f"{tuned.settings.get('base', '')} · {tuned.settings.get('task', '')}"
    axes.set_title(literal(of.strip(" ·")), loc="right", color=FAINT, fontsize=9)
    axes.margins(y=0.12)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.legend(labelcolor=INK, fontsize=9, edgecolor="none", framealpha=1.0)
