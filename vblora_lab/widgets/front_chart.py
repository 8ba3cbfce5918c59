"""FrontChart: the trials of a search, bytes against loss, drawn in the browser."""

from __future__ import annotations

import math
from typing import Any

import anywidget
import traitlets
from matplotlib.figure import Figure

from vblora_lab.plots.tune import tune_figure
from vblora_lab.tables import readable
from vblora_lab.train.tune_result import Tried, Tuned
from vblora_lab.train.tune_space import LABELS
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source


class FrontChart(Pictured, anywidget.AnyWidget):
    """A dot for each trial, a line through those that no other beats, the budget as a dashed line.

    `chosen` is the name of the trial that was clicked, "" for none; it may be set, too.

    Args:
        budget: bytes that an adapter's file may have; 0 for no line.
        height: of the drawing, in CSS pixels.
    """

    _esm = source("canvas.js", "front_chart.js")
    _css = source("theme.css", "front_chart.css")

    trials: traitlets.List[Any] = traitlets.List(read_only=True).tag(sync=True)
    budget = traitlets.Int(0, min=0).tag(sync=True)
    chosen = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(300, min=160).tag(sync=True)

    def __init__(self, budget: int = 0, *, height: int = 300, **kwargs: Any):
        self._tuned: Tuned | None = None
        super().__init__(budget=budget, height=height, **kwargs)

    def show(self, tuned: Tuned | None) -> None:
        """Show the trials of a search that have ended; None for an empty chart."""
        self._tuned = tuned
        with self.hold_sync():
            if tuned is not None:
                self.budget = tuned.bytes
            self.set_trait("trials", [] if tuned is None else items(tuned))
            if self.chosen not in {trial["name"] for trial in self.trials}:
                self.chosen = ""

    def figure(self) -> Figure | None:
        """The same as a matplotlib Figure; None while no trial has run to its end."""
        return tune_figure(self._tuned) if self._tuned and self._tuned.front else None

    def _picture(self) -> Figure | None:
        return self.figure()


def items(tuned: Tuned) -> list[dict[str, Any]]:
    """The trials as the browser draws them, JSON values; a loss that isn't known is None."""
    places = {trial.name: "front" for trial in tuned.front}
    if places:
        places[tuned.best.name] = "best"
    return [
        {
            "name": trial.name,
            "method": trial.method,
            "label": LABELS[trial.method],
            "bytes": trial.bytes,
            "size": readable(trial.bytes),
            "loss": _known(trial.loss),
            "last_loss": _known(trial.last_loss),
            "state": trial.state,
            "place": places.get(trial.name, ""),
            "facts": facts(trial),
        }
        for trial in tuned.trials
    ]


def facts(trial: Tried) -> list[str]:
    """What a trial's adapter and rates are, in a few lines."""
    config, rates = trial.config, trial.learning_rates
    lines = [f"{LABELS[trial.method]} on {trial.targets}"]
    if isinstance(config, VBLoRAConfig):
        bank = f"{config.num_vectors} vectors of {config.vector_length}"
        lines.append(f"r {config.r}, {bank}, topk {config.topk}")
        lines.append(f"rates: bank {rates.bank:.1e}, logits {rates.logits:.1e}")
    else:
        lines += [f"r {getattr(config, 'r', '')}", f"rate {rates.other:.1e}"]
    return lines


def _known(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
