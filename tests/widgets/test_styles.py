"""Widgets share a page: what one's CSS says must not reach into another."""

import re
from collections import defaultdict
from pathlib import Path

from vblora_lab import widgets

FOLDER = Path(widgets.__file__).parent
SHARED = "theme.css"


def test_no_two_widgets_style_one_class():
    """Or where a heatmap is shown too, the explorer's fields stand beside their names."""
    styled_by = defaultdict(set)
    for path in FOLDER.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for selectors in re.findall(r"([^{}]+)\{", text):
            for name in re.findall(r"\.(vblora-[\w-]+)", selectors):
                # The parts of one widget's style are joined.
                styled_by[name].add(path.name if path.parent == FOLDER else path.parent.name)
    assert len(styled_by) > 50
    shared = {name for name, files in styled_by.items() if SHARED in files}
    twice = {name: files for name, files in styled_by.items() if len(files) > 1}
    assert set(twice) <= shared, {name: twice[name] for name in set(twice) - shared}
