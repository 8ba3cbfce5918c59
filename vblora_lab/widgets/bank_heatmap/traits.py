"""The traits through which kernel and browser share a heatmap."""

from __future__ import annotations

from typing import Any, get_args

import anywidget
import traitlets

from vblora_lab.inspection.chance import STANDS_OUT
from vblora_lab.inspection.selection import ColumnsBy, RowsBy


class HeatmapTraits(anywidget.AnyWidget):
    """The synchronised traits of `BankHeatmap`; arrays are bytes, little-endian, in rows."""

    # Sent when the adapter changes.
    modules = traitlets.List(traitlets.Unicode()).tag(sync=True)  # "layer 0 · self_attn.q_proj"
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)  # SubVectors.blocks
    # (N, 5) int32: module, A 0 or B 1, rank, tile, layer
    coordinates = traitlets.Bytes().tag(sync=True)
    num_vectors = traitlets.Int(0).tag(sync=True)
    base = traitlets.Unicode().tag(sync=True)  # `Base.label` of what is adapted; "": not known
    # Sent at each update: one frame, or one for each step.
    steps = traitlets.List(traitlets.Int()).tag(sync=True)  # empty: no trace
    recorded = traitlets.Int(0).tag(sync=True)  # how many steps the trace has
    indices = traitlets.Bytes().tag(sync=True)  # (frames, N, k) uint16, uint32 for a larger bank
    weights = traitlets.Bytes().tag(sync=True)  # (frames, N, k) float32
    usage = traitlets.Bytes().tag(sync=True)  # (frames, num_vectors) float32
    entropy = traitlets.Bytes().tag(sync=True)  # (frames, N) float32
    layer_entropy = traitlets.Bytes().tag(sync=True)  # (frames, layers) float32
    sharing = traitlets.Bytes().tag(sync=True)  # (frames, layers, layers) float32
    churn = traitlets.Bytes().tag(sync=True)  # (frames, 2) float32: since the last, the first one
    spread = traitlets.Bytes().tag(sync=True)  # (frames, modules) float32: ModuleUse.spread
    captions: traitlets.List[Any] = traitlets.List().tag(sync=True)  # headline and details of each
    # What changes are marked against; sent when the adapter changes.
    start_indices = traitlets.Bytes().tag(sync=True)  # (N, k) as indices
    start_weights = traitlets.Bytes().tag(sync=True)  # (N, k) float32
    start_spread = traitlets.Bytes().tag(sync=True)  # (modules,) float32
    grouped_by = traitlets.Enum(("module", "layer"), "module").tag(sync=True)  # chance.modules_of
    stands_out = traitlets.Float(STANDS_OUT).tag(sync=True)  # standard deviations above chance
    # Orders, and the labels beside the rows: level, first row, number of rows, text.
    row_order = traitlets.Bytes().tag(sync=True)  # (N,) int32
    column_order = traitlets.Bytes().tag(sync=True)  # (num_vectors,) int32
    groups: traitlets.List[Any] = traitlets.List().tag(sync=True)
    # Of a live model.
    bank = traitlets.Bytes().tag(sync=True)  # (num_vectors, vector_length) float32
    delta: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # of module_shown: Update
    delta_blocks = traitlets.Bytes().tag(sync=True)
    bench: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # {}: there is none
    # What a person chooses.
    selected = traitlets.List(traitlets.Int(min=0)).tag(sync=True)
    pinned_row = traitlets.Int(-1, min=-1).tag(sync=True)
    lit_vector = traitlets.Int(-1, min=-1).tag(sync=True)
    module_shown = traitlets.Int(-1, min=-1).tag(sync=True)
    frame = traitlets.Int(0, min=0).tag(sync=True)
    view = traitlets.Enum(("modules", "weights", "footprint"), "modules").tag(sync=True)
    opened = traitlets.Int(-1, min=-1).tag(sync=True)  # the module whose rows are shown alone
    rows_by = traitlets.Enum(get_args(RowsBy), "layer").tag(sync=True)
    columns_by = traitlets.Enum(get_args(ColumnsBy), "number").tag(sync=True)
    height = traitlets.Int(460, min=200).tag(sync=True)
    compact = traitlets.Bool(False).tag(sync=True)
    steered = traitlets.Bool(False).tag(sync=True)  # something around the map moves its frame

    @classmethod
    def own_traits(cls) -> list[str]:
        """The names of these traits, which the scripts read."""
        own = HeatmapTraits.class_own_traits(sync=True)
        return [name for name in own if not name.startswith("_")]

    def set_traits(self, values: dict[str, Any]) -> None:
        """Set several by name."""
        for name, value in values.items():
            setattr(self, name, value)

    def clear_traits(self) -> None:
        """Bring them to an empty frame, in one message."""
        with self.hold_sync():
            self.pinned_row = self.lit_vector = self.module_shown = self.opened = -1
            self.modules, self.groups, self.layers, self.steps = [], [], [], []
            self.captions = []
            self.selected = []
            for name in self.own_traits():
                if isinstance(getattr(self, name), bytes):
                    setattr(self, name, b"")
            self.num_vectors = self.recorded = self.frame = 0
