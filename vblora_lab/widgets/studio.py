"""TrainingStudio: watch and steer a session, beside earlier runs, and export what it learned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import ipywidgets
from matplotlib.figure import Figure

from vblora_lab.errors import ConfigError
from vblora_lab.plots.run import SMOOTH_OVER, loss_curve, loss_curves
from vblora_lab.runs.events import Event
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.frontend import Driver
from vblora_lab.train import Runs, Trace, TrainingSession
from vblora_lab.train.exports import export_adapter, export_code, export_lora, export_trace
from vblora_lab.widgets import readout
from vblora_lab.widgets.controls import group
from vblora_lab.widgets.heard import settings_of
from vblora_lab.widgets.loss_chart import THIS_RUN
from vblora_lab.widgets.run_panel import RunPanel, classed

Export = Literal["adapter", "LoRA", "trace", "figure", "code"]
FIGURE = "loss.png"
SMALLEST_RATE = 1e-8
"""Where the rates' sliders begin: they are logarithmic, and have no 0."""


class TrainingStudio(RunPanel):
    """A panel for a `TrainingSession` that you made: its controls, curves, texts and exports.

    It can be opened before, while or after the session trains; earlier events are shown too.

    Args:
        session: what to watch and steer.
        runs: earlier runs to lay under the loss curve: `Runs(folder)`, or traces by name.
        folder: where exports go, until another is written into the panel. Made when needed.
        driver: as `TrainingSession.train`.

    Raises ConfigError for a session or runs of another kind.
    """

    _title = "Training studio"
    session: TrainingSession

    def __init__(
        self,
        session: TrainingSession,
        *,
        runs: Runs | Mapping[str, Trace] | None = None,
        folder: str | Path = "studio",
        driver: Driver | None = None,
    ):
        if not isinstance(session, TrainingSession):
            raise ConfigError(
                f"session is of type {type(session).__name__}; allowed: a TrainingSession. "
                "LiveTraining makes one by itself."
            )
        if not isinstance(runs, Runs | Mapping | None):
            raise ConfigError(
                f"runs is of type {type(runs).__name__}; allowed: Runs(folder), or traces by name, "
                'as {"first": trace}'
            )
        self._base, self._task = session.base, session.task
        self._runs = {} if runs is None else runs
        self._exports: dict[str, Path | BaseException] = {}
        super().__init__(driver, self._build_settings(session, folder))
        self.add_class("vblora-studio")
        self.session = session
        self._steer_rates(self.bank_rate, self.logits_rate)
        self.smoothing.observe(self._on(self._smooth), "value")
        self.overlay.observe(self._on(self._overlay), "value")
        self._reset(session.steps)
        self._show_status("ready")
        self._follow(session)

    # ---- what a person or a cell does ----------------------------------------------------------

    def train(self, wait: bool = False) -> Trace | None:
        """Start the session, as the button does.

        Args:
            wait: Return when the run is over, with its trace. A foreground run always does.

        Raises:
            SessionError: If the session was started before, or another one trains.
            Exception: What made a run fail that was waited for; the panel shows that too.
        """
        if self.driver == "foreground":
            return self.session.run()
        self.session.start()
        return self.wait() if wait else None

    def figure(self) -> Figure:
        """The loss curve as a matplotlib Figure, smoothed and with other runs as on the screen."""
        others = self._others()
        if not others:
            return loss_curve(self.session.trace, self.smoothing.value)
        return loss_curves({THIS_RUN: self.session.trace, **others}, self.smoothing.value)

    def export(self, what: Export) -> Path:
        """Write something into the folder that the panel names, as the buttons do.

        Args:
            what: "adapter" for PEFT; "LoRA", the same update as a LoRA adapter; "trace", for
                `Trace.load`; "figure", as `figure` draws it; "code", which trains the same adapter.

        Returns:
            The path of the file or folder.

        Raises:
            ConfigError: For another `what`, or no folder.
            SessionError: For weights while steps are taken, for code of a base or task without a
                name, and where the folder belongs to a run.
            OSError: What can't be written.
        """
        if what not in get_args(Export):
            raise ConfigError(f"what={what!r}; allowed: {', '.join(map(repr, get_args(Export)))}")
        if not self.folder.value.strip():
            raise ConfigError("folder is empty; name the folder to write to, such as 'studio'")
        write: Callable[[TrainingSession, Path], Path] = {
            "adapter": export_adapter, "LoRA": export_lora, "trace": export_trace,
            "figure": self._export_figure, "code": export_code,
        }[what]  # fmt: skip
        return write(self.session, Path(self.folder.value.strip()).expanduser().absolute())

    # ---- what the session says -----------------------------------------------------------------

    def _follow(self, session: TrainingSession) -> None:
        """Show the events so far, then all later ones; each event once.

        The session's recorder hears an event before its later listeners do. So an event that waits
        for the lock meanwhile is in the trace already: the last of it, for a thread waits with it.
        """
        caught_up = threading.Lock()
        last_shown: Event | None = None

        def hear(event: Event) -> None:
            with caught_up:
                if event is not last_shown:
                    self._listen(event)

        with caught_up:
            session.add_listener(hear)
            earlier = session.trace.events
            last_shown = earlier[-1] if earlier else None
            for event in earlier:
                self._listen(event)
            self._show_what_was_heard()

    # ---- the screen ----------------------------------------------------------------------------

    def _build_settings(self, session: TrainingSession, folder: str | Path) -> ipywidgets.Box:
        """The column beside the views."""
        wide: dict[str, Any] = {
            "layout": {"width": "auto"}, "style": {"description_width": "92px"}
        }  # fmt: skip
        rates = session.learning_rates
        self.bank_rate = _rate("bank", rates.bank, wide)
        self.logits_rate = _rate("logits", rates.logits, wide)
        self.smoothing = ipywidgets.IntSlider(
            value=SMOOTH_OVER, min=1, max=100, description="mean of", **wide
        )
        self.overlay = ipywidgets.SelectMultiple(
            options=list(self._runs), rows=min(5, max(2, len(self._runs))),
            description="other runs", **wide
        )  # fmt: skip
        if not len(self._runs):
            self.overlay.layout.display = "none"  # nothing to choose from
        self.folder = ipywidgets.Text(value=str(folder), description="folder", **wide)
        self._export_buttons = {
            what: ipywidgets.Button(description=what, icon="download", layout={"width": "auto"})
            for what in get_args(Export)
        }
        for what, button in self._export_buttons.items():
            button.on_click(partial(self._export, what))
        self._written = ipywidgets.HTML()
        column = ipywidgets.VBox(
            [
                group("This run"), ipywidgets.HTML(readout.facts(settings_of(session))),
                group("Learning rates"), self.bank_rate, self.logits_rate,
                group("Loss curve"), self.smoothing, self.overlay,
                group("Export"), self.folder,
                classed(ipywidgets.Box(list(self._export_buttons.values())), "vblora-exports"),
                self._written,
            ]
        )  # fmt: skip
        return classed(column, "vblora-controls")

    def _show_status(self, status: str) -> None:
        super()._show_status(status)
        self._train_button.disabled = status != "ready"  # a session trains once
        under_way = status in ("running", "paused")
        # Rates are the session's arguments before the run, and the run's past after it.
        for slider in (self.bank_rate, self.logits_rate):
            slider.disabled = not under_way or self.driver == "foreground"

    def _smooth(self) -> None:
        self.loss_chart.smooth_over = self.smoothing.value

    def _others(self) -> dict[str, Trace]:
        """The runs chosen to be laid under this one."""
        runs = self._runs
        if isinstance(runs, Runs):
            return {name: runs[name].trace for name in self.overlay.value}
        return {name: runs[name] for name in self.overlay.value}

    def _overlay(self) -> None:
        self.loss_chart.overlay(self._others())

    def _export(self, what: Export, _button: Any) -> None:
        """A button can't raise to anyone: the panel says what was written, or why not."""
        try:
            self._exports[what] = self.export(what)
        except Exception as error:
            self._exports[what] = error
        self._written.value = readout.written(self._exports)

    def _export_figure(self, _session: TrainingSession, folder: Path) -> Path:
        place = RunFolder(folder)
        with place.writing(FIGURE) as aside:
            self.figure().savefig(aside, dpi=200)
        return place.path / FIGURE


def _rate(name: str, value: float, options: Mapping[str, Any]) -> ipywidgets.FloatLogSlider:
    """A learning rate in tenths of a power of ten; the first value may be any."""
    return ipywidgets.FloatLogSlider(
        value=max(value, SMALLEST_RATE), base=10, min=-8, max=0, step=0.1, readout_format=".1e",
        description=name, **options,
    )  # fmt: skip
