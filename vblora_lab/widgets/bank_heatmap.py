"""BankHeatmap: which bank vectors each sub-vector mixes, live in the browser.

The kernel sends the coordinates once and, at each update, only what changed: k indices and k
weights for each sub-vector. Drawing, hovering and lighting happen in `bank_heatmap.js`.
"""

from __future__ import annotations

from typing import Any

import anywidget
import numpy as np
import traitlets

from vblora_lab.plots import row_groups
from vblora_lab.selection import Selection, SubVectors
from vblora_lab.widgets._source import source


class BankHeatmap(anywidget.AnyWidget):
    """A heatmap of sub-vectors (rows) by bank vectors (columns), with the bank's usage above it.

    Args:
        selection: What to show; None shows an empty frame until `selection` is set.
        height: Height of the drawing in CSS pixels.

    `pinned_row` and `lit_vector` follow what a person clicks (-1: nothing); set or observe them.
    """

    _esm = source("canvas.js", "bank_heatmap.js")
    _css = source("theme.css", "bank_heatmap.css")

    # Sent when the adapter changes.
    modules = traitlets.List(traitlets.Unicode()).tag(sync=True)  # "layer 0 · self_attn.q_proj"
    # RowGroups: level, first row, number of rows, text.
    groups: traitlets.List[Any] = traitlets.List().tag(sync=True)
    coordinates = traitlets.Bytes().tag(sync=True)  # (N, 4) int32: module, A 0 or B 1, rank, tile
    num_vectors = traitlets.Int(0).tag(sync=True)
    # Sent at each update.
    indices = traitlets.Bytes().tag(sync=True)  # (N, k) uint16, or uint32 for a larger bank
    weights = traitlets.Bytes().tag(sync=True)  # (N, k) float32
    usage = traitlets.Bytes().tag(sync=True)  # (num_vectors,) float32
    # Of the view.
    pinned_row = traitlets.Int(-1, min=-1).tag(sync=True)
    lit_vector = traitlets.Int(-1, min=-1).tag(sync=True)
    height = traitlets.Int(460, min=200).tag(sync=True)

    def __init__(self, selection: Selection | None = None, *, height: int = 460, **kwargs: Any):
        self._selection: Selection | None = None
        super().__init__(height=height, **kwargs)
        if selection is not None:
            self.selection = selection

    @property
    def selection(self) -> Selection | None:
        """What is shown now; set it to show something else."""
        return self._selection

    @selection.setter
    def selection(self, selection: Selection | None) -> None:
        if selection is None:
            self._clear()
        else:
            self.update(selection)

    def update(self, selection: Selection) -> None:
        """Show `selection`, in one message to the browser.

        Raises:
            TypeError: If it is no `Selection`.
        """
        if not isinstance(selection, Selection):
            raise TypeError(
                f"selection is a {type(selection).__name__}, but a BankHeatmap shows a Selection: "
                "read one with vblora_lab.read_selection(model)."
            )
        shown = self._selection
        with self.hold_sync():
            if shown is None or not _same_rows(shown, selection):
                self._send_rows(selection)
            small = selection.num_vectors <= np.iinfo(np.uint16).max + 1
            self.indices = _bytes(selection.indices, "<u2" if small else "<u4")
            self.weights = _bytes(selection.weights, "<f4")
            self.usage = _bytes(selection.usage(), "<f4")
            self._selection = selection

    def _send_rows(self, selection: Selection) -> None:
        rows = selection.sub_vectors
        self.pinned_row = self.lit_vector = -1
        self.num_vectors = selection.num_vectors
        self.modules = _module_labels(rows)
        self.groups = [list(group) for group in row_groups(rows)]
        columns = (rows.module, rows.matrix == "B", rows.rank, rows.tile)
        self.coordinates = _bytes(np.stack(columns, axis=1), "<i4")

    def _clear(self) -> None:
        with self.hold_sync():
            self.pinned_row = self.lit_vector = -1
            self.modules, self.groups = [], []
            self.coordinates = self.indices = self.weights = self.usage = b""
            self.num_vectors = 0
            self._selection = None


def _bytes(array: np.ndarray, dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _same_rows(a: Selection, b: Selection) -> bool:
    """Whether both speak of the same sub-vectors and bank, so that coordinates need not travel."""
    rows, others = a.sub_vectors, b.sub_vectors
    if a.num_vectors != b.num_vectors:
        return False
    if rows is others:
        return True
    arrays = ("module", "matrix", "rank", "tile")
    return rows.modules == others.modules and all(
        np.array_equal(getattr(rows, name), getattr(others, name)) for name in arrays
    )


def _module_labels(rows: SubVectors) -> list[str]:
    """For each module, how `SubVectors.label` names it: a label less its matrix, rank and tile."""
    modules, first_rows = np.unique(rows.module, return_index=True)
    labels = list(rows.modules)
    for module, row in zip(modules, first_rows, strict=True):
        labels[module] = rows.label(int(row)).rsplit(" · ", 3)[0]
    return labels
