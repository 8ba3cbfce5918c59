"""Reads the JavaScript and CSS beside the widgets. No bundler: files are put end to end."""

from pathlib import Path

_HERE = Path(__file__).parent


def source(*names: str) -> str:
    """The text of those files, one after another: shared parts first, the widget's own last."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)
