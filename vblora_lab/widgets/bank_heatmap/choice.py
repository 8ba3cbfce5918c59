"""What a person chooses in a heatmap: a row is pinned, a vector is lit, rows are selected."""

from __future__ import annotations

from typing import Any

import traitlets

from vblora_lab.inspection.selection import Selection
from vblora_lab.widgets.bank_heatmap.traits import HeatmapTraits


class HeatmapChoice(HeatmapTraits):
    """Keeps `selected`, `pinned_row` and `lit_vector` in step with each other."""

    _choosing = False  # while one of them follows another

    @property
    def selection(self) -> Selection | None:
        """What is shown now."""
        raise NotImplementedError

    @property
    def is_live(self) -> bool:
        """Whether a live model is shown."""
        raise NotImplementedError

    def follow_choice(self, _change: Any = None) -> None:
        """Let `selected` follow what is pinned or lit."""
        selection = self.selection
        if selection is None or self._choosing:
            return
        self._choosing = True
        try:
            if self.lit_vector >= 0:
                self.selected = selection.sharers(self.lit_vector).tolist()
            elif self.pinned_row >= 0:
                self.selected = [self.pinned_row]
            elif _change is not None and _change.name != "frame":  # unpinned
                self.selected = []
            if self.is_live and 0 <= self.pinned_row < len(selection.sub_vectors):
                self.module_shown = int(selection.sub_vectors.module[self.pinned_row])
        finally:
            self._choosing = False

    def take_selected(self, _change: Any) -> None:
        """`selected` was set by hand: nothing else is lit then."""
        if not self._choosing:
            self._choosing = True
            try:
                self.lit_vector = -1
                self.pinned_row = self.selected[0] if len(self.selected) == 1 else -1
            finally:
                self._choosing = False

    @traitlets.validate("selected")
    def _within(self, proposal: Any) -> list[int]:
        selection = self.selection
        rows = sorted({int(row) for row in proposal.value})
        if rows and selection is not None and rows[-1] >= len(selection.indices):
            last = len(selection.indices) - 1
            raise traitlets.TraitError(
                f"selected: {rows[-1]} is no sub-vector; the last is {last}."
            )
        return rows
