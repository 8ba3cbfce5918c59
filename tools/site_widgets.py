"""What stands on the site in place of a widget, which would need a kernel.

`make_site.py` imports this in the kernel of each notebook that it runs. A widget is live: what is
shown is its state at the end of the notebook, as in a lab where all cells have been run.

- A widget with `to_html`, such as a `BankHeatmap`, becomes the page that it writes, which can be
  played with.
- A panel of training becomes the page of its run, which can be played back.
- Any other becomes its own picture.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
from IPython import get_ipython
from IPython.display import display

from vblora_lab import BankHeatmap, RecordedTraining

MARK = "vblora-lab widget "
_displayed: list[ipywidgets.Widget] = []


def watch() -> None:
    """From now on, note each widget that a cell displays, and leave a mark in its output."""
    formatter = get_ipython().display_formatter.mimebundle_formatter
    formatter.for_type(ipywidgets.Widget, _mark)


def _mark(widget: ipywidgets.Widget, **_kwargs: Any) -> dict[str, str]:
    _displayed.append(widget)
    return {"text/plain": f"{MARK}{len(_displayed) - 1}"}


def show_forms(folder: str, name: str) -> None:
    """Display, as JSON, the HTML for every mark; pages go to files in `folder` that begin so."""
    forms = {
        f"{MARK}{i}": Form(widget, Path(folder), f"{name}-{i}").html()
        for i, widget in enumerate(_displayed)
    }
    display({"application/json": forms}, raw=True)


class Form:
    """The static form of one widget.

    Args:
        widget: any that this module knows a form of.
        folder: where its page goes, if it has one; pages that show it lie in a folder beside it.
        name: of that page.
    """

    def __init__(self, widget: ipywidgets.Widget, folder: Path, name: str):
        self.widget, self.folder, self.name = widget, folder, name

    def html(self) -> str:
        """Raises TypeError if the widget has no form."""
        return f'<div class="lab-widget">{self._of(self.widget)}</div>'

    def _of(self, widget: ipywidgets.Widget) -> str:
        if hasattr(widget, "to_html"):
            return self._page(widget)
        if isinstance(widget, ipywidgets.Box):
            return self._panel(widget)
        data, metadata = widget._repr_mimebundle_() or ({}, {})
        if "image/png" not in data:
            raise TypeError(f"there is no static form of a {type(widget).__name__}")
        alt = metadata.get("image/png", {}).get("alt", type(widget).__name__)
        return _image(data["image/png"], alt) + _note(
            f"A picture of the <code>{type(widget).__name__}</code>; in the lab it answers."
        )

    def _page(self, widget: Any) -> str:
        file, kind = f"{self.name}.html", type(widget).__name__
        widget.to_html(self.folder / file, title=f"{kind} of {self.name}")
        where = f"../{self.folder.name}/{file}"
        return (
            f'<iframe src="{where}" title="{kind}" loading="lazy" height="{_height(widget)}">'
            "</iframe>"
        ) + _note(
            "This is the page that <code>to_html</code> writes, as it is after the last cell: "
            f'it answers to pointer and keys. <a href="{where}">Open it alone</a>.'
        )

    def _panel(self, panel: ipywidgets.Box) -> str:
        """The run of a panel, to play back."""
        trace = getattr(panel, "trace", None)
        if trace is None:
            raise TypeError(f"there is no static form of a {type(panel).__name__} before its run")
        return self._page(RecordedTraining(trace, title=f"{type(panel).__name__}, played back"))


def _height(widget: Any) -> int:
    """Of the iframe, in pixels, until site.js knows better."""
    if isinstance(widget, BankHeatmap):
        return widget.height + (160 if widget.compact else 1100)
    return 800


def _image(png: str, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{png}">'


def _note(html: str) -> str:
    return f'<p class="lab-widget-note">{html}</p>'
