"""RecordedTraining: a run that is over, played back as `LiveTraining` showed it while it went on.

It is put together of the loss chart and the heatmap, with a slider over the run's steps. All that
it shows is sent at once: played back, it needs no kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from vblora_lab.errors import DataError
from vblora_lab.plots.run import SMOOTH_OVER, run_summary, smooth
from vblora_lab.runs.events import Evaluated, Sampled, Started, Stepped
from vblora_lab.runs.trace import Trace
from vblora_lab.tables import count
from vblora_lab.widgets import readout
from vblora_lab.widgets._page import own_state, write_page
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import module, source
from vblora_lab.widgets.bank_heatmap import BankHeatmap
from vblora_lab.widgets.bank_heatmap.page import SCRIPTS as HEATMAP_SCRIPTS
from vblora_lab.widgets.bank_heatmap.page import STYLES as HEATMAP_STYLES
from vblora_lab.widgets.bank_heatmap.traits import HeatmapTraits
from vblora_lab.widgets.heard import Heard
from vblora_lab.widgets.loss_chart import LossChart

LOSS_HEIGHT, MAP_HEIGHT = 190, 336  # CSS pixels
TILES = ("loss", "validation", "trained", "stored", "sub-vectors")
"""Of a panel's numbers, those that don't tell of the machine that trained."""
SCRIPT = "\n".join(
    [
        module("lossChart", "canvas.js", "loss_chart.js"),
        module("bankMap", *HEATMAP_SCRIPTS),
        source("canvas.js", "recorded_training/render.js"),
    ]
)
STYLE = source(
    *("theme.css", "live.css", "run_panel.css", "loss_chart.css"),
    *(name for name in HEATMAP_STYLES if name != "theme.css"),
    "recorded_training/recorded_training.css",
)


class RecordedTraining(Pictured, anywidget.AnyWidget):
    """A recorded run with play, pause and a slider: its loss, what its bank did, and its texts.

    Args:
        trace: of the run, or the path of one. Without selections there is no map.
        title: the heading.
        about: a line below it; the base model and the number of steps if not given.

    Traits to set or to observe:
        step: the step that is shown, of those that the run took; 0 for before the first.

    Raises:
        DataError: there is no such trace, or it has no steps.
    """

    _esm = f"{source('stored_model.js')}\n{SCRIPT}"
    _css = STYLE

    title = traitlets.Unicode().tag(sync=True)
    about = traitlets.Unicode().tag(sync=True)
    step = traitlets.Int(0, min=0).tag(sync=True)
    # The traits of both parts, by name: of the whole run, which the script cuts where `step` is.
    loss: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)
    map: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)  # {}: none
    # For step 0 and each after it: the tiles that have another number or note than before.
    numbers: traitlets.List[Any] = traitlets.List(read_only=True).tag(sync=True)
    samples: traitlets.List[Any] = traitlets.List(read_only=True).tag(sync=True)  # step, HTML

    def __init__(self, trace: Trace | str | Path, title: str = "", about: str = "", **kwargs: Any):
        self.trace = trace if isinstance(trace, Trace) else Trace.load(trace)
        if not len(self.trace.steps):
            raise DataError("this trace has no steps, so there is nothing to play back.")
        steps = count(len(self.trace.steps), "recorded step")
        about = about or ", ".join(filter(None, [self.trace.base, steps]))
        super().__init__(title=title or "A training run, played back", about=about, **kwargs)
        self.set_trait("loss", _loss_of(self.trace))
        self.set_trait("map", _map_of(self.trace))
        self.set_trait("numbers", _numbers_of(self.trace))
        self.set_trait("samples", _samples_of(self.trace))

    @traitlets.validate("step")
    def _nearest_step(self, proposal: Any) -> int:
        """The last step that the run took, up to the one that is asked for."""
        taken = self.trace.steps[self.trace.steps <= proposal["value"]]
        return int(taken[-1]) if len(taken) else 0

    def figure(self) -> Figure:
        """The whole run as a figure that stays."""
        return run_summary(self.trace, self.title, {"run": self.about})

    def to_html(self, path: str | Path, title: str = "A training run, played back") -> Path:
        """Write one HTML file that plays the run without kernel or network.

        In an iframe, it posts {vbloraHeight: pixels} to the page around it, and heeds
        {vbloraDark: boolean}.

        Args:
            path: of the file; its folder must exist.
            title: of the page.
        """
        return write_page(self, path, title, SCRIPT, STYLE)

    def _picture(self) -> Figure:
        return self.figure()


def _loss_of(trace: Trace) -> dict[str, Any]:
    """The traits of a `LossChart`, with the whole line in `opened`."""
    means = smooth(trace.losses, SMOOTH_OVER)
    chart = LossChart(int(trace.steps[-1]), height=LOSS_HEIGHT)
    return own_state(chart) | {
        "opened": np.stack([trace.steps, trace.losses, means], axis=1).astype("<f4").tobytes(),
        "evaluations": np.stack([trace.eval_steps, trace.eval_losses], axis=1)
        .astype("<f4")
        .tobytes(),
    }


def _map_of(trace: Trace) -> dict[str, Any]:
    """The traits of a `BankHeatmap`; none for a trace without selections."""
    if not trace.selections:
        return {}
    heatmap = BankHeatmap(trace, height=MAP_HEIGHT, compact=True)
    return {name: getattr(heatmap, name) for name in HeatmapTraits.own_traits()} | {"steered": True}


def _numbers_of(trace: Trace) -> list[dict[str, tuple[str, str]]]:
    """By step, the tiles that change; each is a number and a note."""
    heard = Heard()
    shown: dict[str, tuple[str, str]] = {}
    changes: list[dict[str, tuple[str, str]]] = [{}]
    for event in trace.events:
        match event:
            case Started():
                heard.started = event
            case Evaluated():
                heard.evaluation = event
            case Stepped():
                heard.last_step = event
                changes.append({})
        numbers = {name: heard.numbers(goes_on=True)[name] for name in TILES}
        changes[-1] |= {name: now for name, now in numbers.items() if shown.get(name) != now}
        shown = numbers
    return changes


def _samples_of(trace: Trace) -> list[tuple[int, str]]:
    """Steps at which texts were written, and the table that a panel shows from then on."""
    sampled = [event for event in trace.events if isinstance(event, Sampled)]
    return [
        (
            event.step,
            readout.samples(sampled[0].samples, event.samples if i else (), event.step or None),
        )
        for i, event in enumerate(sampled)
    ]
