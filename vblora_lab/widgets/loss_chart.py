"""LossChart: the loss of a run while it runs, drawn in the browser (`loss_chart.js`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import anywidget
import numpy as np
import traitlets

from vblora_lab.plots import SMOOTH_OVER, smooth
from vblora_lab.widgets._source import source

CHUNK = 512
"""Steps that travel together. An append sends the last, open chunk alone: 6 kB at most."""


class LossChart(anywidget.AnyWidget):
    """A line of training losses with its running mean, and points for evaluation losses.

    Args:
        total_steps: How far the step axis reaches before the line does.
        height: Height of the drawing in CSS pixels.
    """

    _esm = source("canvas.js", "loss_chart.js")
    _css = source("theme.css", "loss_chart.css")

    total_steps = traitlets.Int(0, min=0).tag(sync=True)
    smooth_over = traitlets.Int(SMOOTH_OVER).tag(sync=True)
    # Each point is float32 (step, loss, mean of the last losses). Full chunks are sent once.
    closed = traitlets.Bytes().tag(sync=True)
    opened = traitlets.Bytes().tag(sync=True)
    evaluations = traitlets.Bytes().tag(sync=True)  # (m, 2) float32: step, loss
    height = traitlets.Int(240, min=120).tag(sync=True)

    def __init__(self, total_steps: int = 0, *, height: int = 240, **kwargs: Any):
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._evaluations: list[tuple[int, float]] = []
        super().__init__(total_steps=total_steps, height=height, **kwargs)

    def reset(self, total_steps: int = 0) -> None:
        """Forget all points and start an axis of `total_steps`."""
        self._steps, self._losses, self._evaluations = [], [], []
        with self.hold_sync():
            self.total_steps = total_steps
            self.closed = self.opened = self.evaluations = b""

    def append(self, steps: Sequence[int], losses: Sequence[float]) -> None:
        """Add points at the end of the line.

        Args:
            steps: (n,) step numbers, each above the one before.
            losses: (n,) nats per token.

        Raises:
            ValueError: If the lengths differ or the steps do not ascend.
        """
        if len(steps) != len(losses):
            raise ValueError(
                f"steps has {len(steps)} values and losses {len(losses)}: each step needs one loss."
            )
        ascending = [*self._steps[-1:], *steps]
        if any(b <= a for a, b in pairwise(ascending)):
            raise ValueError(
                f"steps has {list(steps)} after step {self._steps[-1] if self._steps else None}: "
                "steps must ascend. Call reset() to start a new line."
            )
        self._steps.extend(steps)
        self._losses.extend(losses)
        means = smooth(np.array(self._losses))
        points = np.stack([self._steps, self._losses, means], axis=1).astype("<f4")
        full = len(points) - len(points) % CHUNK
        with self.hold_sync():
            self.closed = points[:full].tobytes()
            self.opened = points[full:].tobytes()

    def append_evaluation(self, step: int, loss: float) -> None:
        """Add one evaluation loss, in nats per token."""
        self._evaluations.append((step, loss))
        self.evaluations = np.array(self._evaluations, "<f4").tobytes()
