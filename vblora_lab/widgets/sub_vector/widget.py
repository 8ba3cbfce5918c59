"""SubVector: one sub-vector to play with, from its logits to the output of its layer.

Everything that is shown follows in the browser from the numbers of one small layer, so that the
widget does the same in a notebook and in a page without a kernel.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from vblora_lab.errors import SelectionError
from vblora_lab.inspection.one_layer import ROW, OneLayer, example_layer
from vblora_lab.plots.sub_vector import sub_vector_figure
from vblora_lab.widgets._page import write_page
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source

SCRIPTS = ("maths", "drawing", "logits", "mixture", "place", "output", "rows", "state", "render")
SCRIPT = source("canvas.js", "svg.js", *(f"sub_vector/{part}.js" for part in SCRIPTS))
STYLE = source("theme.css", "sub_vector/sub_vector.css")

# A browser's bytes arrive as a memoryview, which traitlets doesn't take for bytes.
FLOATS = {"sync": True, "from_json": lambda value, _widget: bytes(value)}


class SubVector(Pictured, anywidget.AnyWidget):
    """One sub-vector of a small layer: drag its logits, train it step by step, zoom out to the map.

    Args:
        layer: the layer; `example_layer()` if not given.
        row: which of its sub-vectors is shown, those of A first; see `OneLayer.rows`. If not given,
            the first of a layer, and that of the example whose choice is wrong.

    Traits to set or to observe:
        row: the sub-vector that is shown.
        topk: how many bank vectors make one.
        phase: "forward", "gradient" (arrows show it) or "update" (outlines show what was before).
        moves: what a training step changes: "logits", those of this sub-vector, or "everything",
            all logits and the bank.
        rate: the learning rate of a step for logits; the bank's is a tenth of it.
        zoomed_out: whether all sub-vectors are shown, a row each.

    Raises:
        SelectionError: there is no such row.
    """

    _esm = SCRIPT
    _css = STYLE

    # As the browser changes them, and as it began; float32, little-endian, in rows.
    logits = traitlets.Bytes().tag(**FLOATS)  # (N, num_vectors), those of A first
    bank = traitlets.Bytes().tag(**FLOATS)  # (num_vectors, vector_length)
    start_logits = traitlets.Bytes().tag(**FLOATS)
    start_bank = traitlets.Bytes().tag(**FLOATS)
    x = traitlets.Bytes().tag(**FLOATS)  # (in_features,)
    base = traitlets.Bytes().tag(**FLOATS)  # (out_features,)
    wanted = traitlets.Bytes().tag(**FLOATS)  # (out_features,)
    shape: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    topk = traitlets.Int(2, min=1).tag(sync=True)
    row = traitlets.Int(0, min=0).tag(sync=True)
    phase = traitlets.Enum(("forward", "gradient", "update"), "forward").tag(sync=True)
    moves = traitlets.Enum(("logits", "everything"), "logits").tag(sync=True)
    rate = traitlets.Float(3.0, min=0.0).tag(sync=True)
    zoomed_out = traitlets.Bool(False).tag(sync=True)

    def __init__(self, layer: OneLayer | None = None, *, row: int | None = None, **kwargs: Any):
        self._start = example_layer() if layer is None else layer
        if row is None:
            row = ROW if layer is None else 0
        super().__init__(**_traits_of(self._start), row=row, **kwargs)

    @traitlets.validate("row")
    def _check_row(self, proposal: Any) -> int:
        count = len(self._start.rows)
        if proposal["value"] >= count:
            raise SelectionError(f"row={proposal['value']}: the layer has rows 0 to {count - 1}.")
        return int(proposal["value"])

    @traitlets.validate("topk")
    def _check_topk(self, proposal: Any) -> int:
        most = len(self._start.bank)
        if proposal["value"] > most:
            raise SelectionError(f"topk={proposal['value']}: the bank has {most} vectors.")
        return int(proposal["value"])

    @traitlets.validate("logits", "bank")
    def _check_size(self, proposal: Any) -> bytes:
        name, value = proposal["trait"].name, proposal["value"]
        expected = (self._start.rows if name == "logits" else self._start.bank).nbytes
        if len(value) != expected:
            raise SelectionError(f"{name} has {len(value)} bytes; this layer's have {expected}.")
        return bytes(value)

    @property
    def layer(self) -> OneLayer:
        """The layer as it is now, after all that was done to it in the browser."""
        rows = np.frombuffer(self.logits, np.float32).reshape(self._start.rows.shape)
        bank = np.frombuffer(self.bank, np.float32).reshape(self._start.bank.shape)
        return dataclasses.replace(self._start.with_rows(rows, bank), topk=self.topk)

    def figure(self) -> Figure:
        """What is shown now, as a figure that stays."""
        return sub_vector_figure(self.layer, self.row)

    def to_html(self, path: str | Path, title: str = "One sub-vector of VB-LoRA") -> Path:
        """Write one HTML file that does all this without kernel or network.

        For readers without JavaScript it holds a picture. In an iframe, it posts {vbloraHeight:
        pixels} to the page around it, and heeds {vbloraDark: boolean}.

        Args:
            path: of the file; its folder must exist.
            title: of the page.
        """
        return write_page(self, path, title, SCRIPT, STYLE)

    def _picture(self) -> Figure:
        return self.figure()


def _traits_of(layer: OneLayer) -> dict[str, Any]:
    r, in_tiles, num_vectors = layer.logits_A.shape
    logits, bank = layer.rows.tobytes(), layer.bank.tobytes()
    return {
        "logits": logits,
        "bank": bank,
        "start_logits": logits,
        "start_bank": bank,
        **{name: getattr(layer, name).tobytes() for name in ("x", "base", "wanted")},
        "shape": {
            "r": r, "in_tiles": in_tiles, "out_tiles": len(layer.logits_B),
            "num_vectors": num_vectors, "vector_length": layer.bank.shape[1],
        },
        "topk": layer.topk,
    }  # fmt: skip
