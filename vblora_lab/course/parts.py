"""What the course's figures and drawings share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vblora_lab.plots.style import BLUE, INK, ORANGE, LabFigure, plain

# Apart in lightness as well as in hue, and each with its own dashes: readable in grey.
STYLES = [
    (BLUE, "-"), (ORANGE, "--"), ("#4d7c0f", "-."), ("#86198f", ":"),
    (INK, (0, (6, 1, 1, 1, 1, 1))), ("#0f766e", (0, (1, 1))),
]  # fmt: skip


def panels(
    width: float, height: float, columns: int, width_ratios: Sequence[float] | None = None
) -> tuple[LabFigure, list[Axes]]:
    figure = LabFigure(figsize=(width, height), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(1, columns, width_ratios=width_ratios)
    return figure, [plain(figure.add_subplot(grid[0, column])) for column in range(columns)]


def whole_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def frame(axes: Axes, width: float, height: float, title: str) -> None:
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.tick_params(length=0)
