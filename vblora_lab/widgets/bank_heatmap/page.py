"""The parts of a heatmap's script and style, and its page without a kernel."""

from __future__ import annotations

from typing import Any

from vblora_lab.widgets import _page
from vblora_lab.widgets._page import Answers
from vblora_lab.widgets._source import source

PARTS = (
    *("colours", "data", "modules", "legend", "drawing", "map"),
    *("controls", "plot", "views", "table", "bench", "render"),
)
SCRIPTS = ("canvas.js", *(f"bank_heatmap/{part}.js" for part in PARTS))
SCRIPT = source(*SCRIPTS)
STYLES = ("theme.css", "bank_heatmap/bank_heatmap.css", "bank_heatmap/bench.css")
STYLE = source(*STYLES)


def page(title: str, state: dict[str, Any], answers: Answers, png: bytes) -> str:
    """The text of an HTML file with a heatmap; see `_page.page`."""
    return _page.page(title, state, answers, png, script=SCRIPT, style=STYLE)
