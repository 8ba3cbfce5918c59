"""What all figures share: inks, the figure that a notebook shows, axes without a frame."""

from __future__ import annotations

import io

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

INK, FAINT, RULE = "#1f2933", "#5f6b7a", "#c9d1d9"
BLUE, ORANGE = "#1d6fa5", "#c2570c"
STYLES = (
    (BLUE, "-", "D"), (ORANGE, "--", "s"), ("#2f7d4f", "-.", "^"), ("#8a1c62", ":", "o"),
    (INK, (0, (6, 1, 1, 1, 1, 1)), "v"), ("#6212b2", (0, (1, 1)), "P"),
)  # fmt: skip
"""Colour, dashes and mark of each run in a figure of several."""
WEIGHTS = LinearSegmentedColormap.from_list(
    "weights", colormaps["YlGnBu"](np.linspace(0.3, 1.0, 256))
)
"""Pale green to dark blue. Lightness falls steadily, so it reads without colour vision and in grey;
it starts away from white, which means "not chosen"."""

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
    """A name as Matplotlib must get it: what lies between two "$" would be a formula."""
    return name.replace("$", r"\$")


def empty_figure(width: float, height: float) -> tuple[LabFigure, Axes]:
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


def eighths(columns: int) -> MultipleLocator:
    """Ticks at eighths of the bank: its sizes are powers of two more often than of ten."""
    return MultipleLocator(max(1, columns // 8))
