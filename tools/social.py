"""Draw the picture that is shown with a link to the site: `python tools/social.py`.

It goes to docs/images/social.png, 1200 x 630 pixels: a sentence, and the losses that
`benchmarks/pareto.py` measured, against stored bytes. Draw it anew when they change: a test
compares the words that the file holds with those of today. Look at it before you commit it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import play
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vblora_lab.course.measured import Point, curve
from vblora_lab.plots.style import BLUE, FAINT, INK, ORANGE, RULE, LabFigure, plain

DOTS = 100  # pixels of an inch here
COLOURS = 64  # of the stored picture, which is a third of the size then
WORDS = "Description"  # the text in a PNG that says what it shows
LINES = {"VB-LoRA": (BLUE, "-", "D"), "LoRA": (ORANGE, "--", "s")}


def picture() -> LabFigure:
    """What it is and when to use it on the left, two curves on the right."""
    width, height = (pixels / DOTS for pixels in play.SOCIAL_SIZE)
    figure = LabFigure(figsize=(width, height), facecolor="white")
    figure.alt = play.social_alt()

    def write(y: float, size: float, text: str, **look: Any) -> None:
        look = {"color": INK, "va": "top", "linespacing": 1.35} | look
        figure.text(0.05, y, text, fontsize=size, **look)

    write(0.92, 56, "VB-LoRA", fontweight="bold", color=BLUE)
    write(0.735, 24, "Adapters out of one small\nbank of vectors, which all\nlayers share")
    write(0.46, 24, f"Lower loss than LoRA\nin up to {play.size_until_level()}", fontweight="bold")
    write(0.285, 15, "SmolLM2-135M, numbers in 8 bits", color=FAINT)
    write(0.135, 18, "Drag it, plan it, watch it train", color=BLUE)
    _draw_lines(plain(figure.add_axes((0.535, 0.17, 0.425, 0.73))), curve(play.BASE))
    return figure


def _draw_lines(axes: Axes, points: Iterable[Point]) -> None:
    for group, (colour, dashes, mark) in LINES.items():
        line = front(point for point in points if point.group == group)
        x, y = [point.size for point in line], [point.losses.mean for point in line]
        axes.plot(x, y, color=colour, linestyle=dashes, marker=mark, markersize=10, linewidth=4)
        axes.annotate(
            group, (x[0], y[0]), xytext=(16, 0), textcoords="offset points", fontsize=22,
            fontweight="bold", color=colour, path_effects=[withStroke(linewidth=5, foreground="w")],
        )  # fmt: skip
    axes.set(xscale="log")
    axes.set_xlabel("stored bytes", fontsize=17, color=FAINT)
    axes.set_ylabel("validation loss (nats per token)", fontsize=17, color=FAINT)
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _power(size)))
    axes.tick_params(labelsize=15, colors=FAINT)
    axes.grid(color=RULE, linewidth=0.8)


def front(points: Iterable[Point]) -> list[Point]:
    """Those with a lower loss than all smaller ones."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: each.size):
        if not kept or point.losses.mean < kept[-1].losses.mean:
            kept.append(point)
    return kept


def _power(size: float) -> str:
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"


def png(figure: LabFigure) -> bytes:
    """The file: few colours, and in words what it shows."""
    drawn, kept, words = io.BytesIO(), io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", dpi=DOTS)
    words.add_itxt(WORDS, figure.alt)
    few = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(kept, format="png", optimize=True, pnginfo=words)
    return kept.getvalue()


def main() -> None:
    play.SOCIAL.write_bytes(png(picture()))
    print(f"{play.SOCIAL.name}: {play.SOCIAL.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
