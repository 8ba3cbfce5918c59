"""LossChart: the loss of a run while it runs, drawn in the browser (`loss_chart.js`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from vblora_lab.plots.run import SMOOTH_OVER, loss_curve, loss_curves, smooth
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source

if TYPE_CHECKING:
    from vblora_lab.runs.trace import Trace

THIS_RUN = "this run"
CHUNK = 512
"""Steps that travel together. An append sends the last, open chunk alone: 6 kB at most."""


class LossChart(Pictured, anywidget.AnyWidget):
    """A line of training losses with its running mean, and points for evaluation losses.

    `smooth_over` may be set at any time; `overlay` puts the smoothed losses of other runs behind.

    Args:
        total_steps: How far the step axis reaches before the line does.
        height: Height of the drawing in CSS pixels.
    """

    _esm = source("canvas.js", "loss_chart.js")
    _css = source("theme.css", "loss_chart.css")

    total_steps = traitlets.Int(0, min=0).tag(sync=True)
    smooth_over = traitlets.Int(SMOOTH_OVER, min=1).tag(sync=True)  # steps
    # Each point is float32 (step, loss, mean of the last losses). Full chunks are sent once.
    closed = traitlets.Bytes().tag(sync=True)
    opened = traitlets.Bytes().tag(sync=True)
    evaluations = traitlets.Bytes().tag(sync=True)  # (m, 2) float32: step, loss
    # Other runs: names, how many points each has, and float32 (step, mean) of all in that order.
    other_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    other_lengths = traitlets.List(traitlets.Int()).tag(sync=True)
    other_points = traitlets.Bytes().tag(sync=True)
    height = traitlets.Int(240, min=120).tag(sync=True)

    def __init__(self, total_steps: int = 0, *, height: int = 240, **kwargs: Any):
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._evaluations: list[tuple[int, float]] = []
        self._others: dict[str, Trace] = {}
        super().__init__(total_steps=total_steps, height=height, **kwargs)

    @property
    def steps(self) -> np.ndarray:
        """(n,) int64, the steps of the line."""
        return np.array(self._steps, np.int64)

    @property
    def losses(self) -> np.ndarray:
        """(n,) float64, in nats per token."""
        return np.array(self._losses, np.float64)

    @property
    def eval_steps(self) -> np.ndarray:
        """(m,) int64, the steps of the evaluations."""
        return np.array([step for step, _ in self._evaluations], np.int64)

    @property
    def eval_losses(self) -> np.ndarray:
        """(m,) float64, in nats per token."""
        return np.array([loss for _, loss in self._evaluations], np.float64)

    @property
    def base(self) -> str:
        """The chart doesn't know its base model; the trace does."""
        return ""

    def figure(self) -> Figure:
        """The chart as a matplotlib Figure, smoothed and with other runs as on the screen."""
        if self._others:
            return loss_curves({THIS_RUN: self, **self._others}, self.smooth_over)
        return loss_curve(self, self.smooth_over)

    def _picture(self) -> Figure | None:
        return self.figure() if self._steps or self._evaluations or self._others else None

    def reset(self, total_steps: int = 0) -> None:
        """Forget this run's points and start an axis of `total_steps`. Other runs stay."""
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
        self._send_line()

    @traitlets.observe("smooth_over")
    def _smooth_anew(self, _change: Any) -> None:
        with self.hold_sync():
            self._send_line()
            self._send_others()

    def _send_line(self) -> None:
        means = smooth(np.array(self._losses), self.smooth_over)
        points = np.stack([self._steps, self._losses, means], axis=1).astype("<f4")
        full = len(points) - len(points) % CHUNK
        with self.hold_sync():
            self.closed = points[:full].tobytes()
            self.opened = points[full:].tobytes()

    def append_evaluation(self, step: int, loss: float) -> None:
        """Add one evaluation loss, in nats per token."""
        self._evaluations.append((step, loss))
        self.evaluations = np.array(self._evaluations, "<f4").tobytes()

    def overlay(self, traces: Mapping[str, Trace]) -> None:
        """Draw the smoothed losses of these runs, by name, behind the line; {} for none."""
        self._others = dict(traces)
        self._send_others()

    def _send_others(self) -> None:
        lines = [
            np.stack([trace.steps, smooth(trace.losses, self.smooth_over)], axis=1).astype("<f4")
            for trace in self._others.values()
        ]
        with self.hold_sync():
            self.other_names = list(self._others)
            self.other_lengths = [len(line) for line in lines]
            self.other_points = b"".join(line.tobytes() for line in lines)
