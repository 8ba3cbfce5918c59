"""The parts of an explorer's script and style, and its page without a kernel."""

from __future__ import annotations

from collections.abc import Mapping

from vblora_lab.widgets import _page
from vblora_lab.widgets._source import source

PARTS = ("helpers", "fields", "names", "results", "cut", "explorer")
STYLES = ("frame", "form", "sizes", "results")
STYLE = source("theme.css", *(f"config_explorer/{part}.css" for part in STYLES))


def script(last: str) -> str:
    """The parts in order, and how they are shown: "render" with a kernel, "recorded" without."""
    return source("canvas.js", *(f"config_explorer/{part}.js" for part in (*PARTS, last)))


def page(title: str, recordings: Mapping[str, str], png: bytes) -> str:
    """The text of an HTML file with an explorer.

    Args:
        title: of the page.
        recordings: what base models are called there, and `recording.packed` for each; the first
            is shown first.
        png: a picture for readers without JavaScript.
    """
    state = {"recordings": dict(recordings)}
    return _page.page(title, state, {}, png, script=script("recorded"), style=STYLE)
