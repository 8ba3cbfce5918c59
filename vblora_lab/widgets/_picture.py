"""What a widget leaves in a notebook for readers without a kernel: a picture of what it showed."""

from __future__ import annotations

import base64
from typing import Any

import anywidget
from matplotlib.figure import Figure


class Pictured:
    """Mixed into a widget, before its other base: puts `_picture` beside its view in the output.

    The picture is of the moment when the cell ran: an output doesn't change with its widget.
    """

    # ipywidgets 7 displays by this method, and then asks for no bundle and shows no picture.
    _ipython_display_ = None

    def _picture(self) -> Figure | None:
        """What is shown now; None for nothing."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        # anywidget's own method, for boxes too: in ipywidgets 7 they have none, and on Colab this
        # one names the widget manager that can show anywidgets.
        bundle = anywidget.AnyWidget._repr_mimebundle_(self, **kwargs)  # type: ignore[arg-type]
        if bundle is None:
            return None
        data, metadata = bundle
        data["text/plain"] = type(self).__name__  # not the state, which can be megabytes
        figure = self._picture()
        if figure is not None:
            png, size = figure._repr_png_()  # type: ignore[attr-defined]
            data["image/png"] = base64.b64encode(png).decode()
            metadata = {**metadata, "image/png": size}
        return data, metadata
