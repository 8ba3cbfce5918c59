"""What LiveTraining and TrainingStudio have in common: the screen of a run, and its buttons.

A panel trains nothing itself. It listens to the events of a `TrainingSession` and shows what they
say. Events come faster than a screen is read, and drawing it takes the processor from training:
they are gathered, and shown about once a second. All that is on the screen is in widgets' traits:
a page that is loaded again shows it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anywidget
import ipywidgets
from matplotlib.figure import Figure

from vblora_lab.bases import Base
from vblora_lab.data import Task
from vblora_lab.errors import SessionError
from vblora_lab.plots.run import run_summary
from vblora_lab.runs.events import (
    Evaluated,
    Event,
    Finished,
    Paused,
    Resumed,
    Sampled,
    SaveFailed,
    Selected,
    Started,
    Stepped,
    Working,
)
from vblora_lab.runs.frontend import Driver, detect
from vblora_lab.train import Trace, TrainingSession
from vblora_lab.widgets import readout
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source
from vblora_lab.widgets.bank_heatmap import BankHeatmap
from vblora_lab.widgets.header import Header
from vblora_lab.widgets.heard import Heard, settings_of
from vblora_lab.widgets.loss_chart import LossChart

SHOW_EVERY = 0.8
"""Seconds between two updates of the screen."""
LOSS_HEIGHT, MAP_HEIGHT = 168, 336
"""CSS pixels: with the controls, both fit into a window of 1400 by 1000 pixels."""


class Frame(anywidget.AnyWidget):
    """A panel's style, and names for its sliders, which ipywidgets gives none."""

    _esm = source("run_panel.js")
    _css = source("theme.css", "live.css", "run_panel.css")


class RunPanel(Pictured, ipywidgets.VBox):
    """The screen of a run. A subclass makes or is given the session, and says how it begins."""

    _title: str
    session: TrainingSession | None
    _base: Base
    _task: Task

    def __init__(self, driver: Driver | None, settings: ipywidgets.Box):
        """`driver`: as `TrainingSession.train`. `settings`: the column beside the views."""
        if driver not in (None, "thread", "foreground"):
            raise ValueError(f"driver is {driver!r}; allowed: 'thread', 'foreground' or None.")
        self.driver: Driver = driver or detect().driver
        self.session = None
        self._status = "ready"
        self.loss_chart = LossChart(height=LOSS_HEIGHT)
        self.heatmap = BankHeatmap(compact=True, height=MAP_HEIGHT)
        self._build(settings)

    # ---- what a person or a cell does ----------------------------------------------------------

    @property
    def trace(self) -> Trace | None:
        """The record of the run; None before the first."""
        return self.session.trace if self.session else None

    @property
    def status(self) -> str:
        """What the panel shows: "ready", "running", "paused", "completed", "stopped", "failed"."""
        return self._status

    def train(self, wait: bool = False) -> Trace | None:
        """Begin the run."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the run after the step it is at. Does nothing if none is going on."""
        if self.session and self.status in ("running", "paused"):
            for button in (self._stop_button, self._pause_button, self._step_button):
                button.disabled = True
            self._header.show("stopping")  # a step and some writing are still to do
            self.session.stop()

    def pause(self) -> None:
        """Wait after the step in progress. Raises `SessionError` if no run goes on."""
        self._the_session().pause()

    def step(self) -> None:
        """While paused: take one step. Raises `SessionError` if the run isn't paused."""
        self._the_session().step()

    def resume(self) -> None:
        """End a pause. Raises `SessionError` if there is none."""
        self._the_session().resume()

    def _the_session(self) -> TrainingSession:
        if self.session is None:
            raise SessionError("There is no run yet: press Train, or call train().")
        return self.session

    def wait(self, timeout: float | None = None) -> Trace | None:
        """Wait for the end of the run; an interrupt of the kernel stops it cleanly.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Its trace, or None if nothing was ever started.

        Raises:
            TimeoutError: If it still goes on after `timeout`.
            Exception: What made the run fail.
        """
        if self.session is None:
            return None
        try:
            return self.session.wait(timeout)
        except KeyboardInterrupt:
            self.session.stop()
            return self.session.wait(timeout)

    def figure(self) -> Figure:
        """The loss curve as a matplotlib Figure, as on the screen. `heatmap.figure` has the map.

        Raises `SessionError` before the first run.
        """
        self._the_session()
        return self.loss_chart.figure()

    def _picture(self) -> Figure:
        numbers = {
            name: f"{number} ({note})"
            for name, (number, note) in self._numbers().items()
            if number != readout.NOTHING
        }
        facts = {"base model": self._base.label, "task": self._task.name}
        if self.session is not None:
            facts |= settings_of(self.session)
        title = f"{self._title} · {readout.state(self.status)}"
        return run_summary(self.trace or Trace(), title, facts | numbers)

    # ---- what the session says -----------------------------------------------------------------

    def _listen(self, event: Event) -> None:
        """Runs in the training thread, once for each event."""
        match event:
            case Started():
                self._heard.started = event
                if self.status == "ready":  # begun by session.start(), not by the button
                    self._show_status("running")
            case Working():
                self._header.tell(event)
                return
            case Stepped():
                self._heard.unseen_steps.append(event)
                self._header.tell(None)
            case Selected():
                self._heard.unseen_selection = event.selection
                if self.heatmap.selection is None:  # the start, which changes are marked against
                    self.heatmap.update(event.selection)
            case Evaluated():
                self._heard.evaluation = event
                self.loss_chart.append_evaluation(event.step, event.eval_loss)
            case Sampled():
                self._show_samples(event)
            case SaveFailed():
                self._message.value = readout.message(SessionError(event.problem))
            case Paused() | Resumed():
                self._show_what_was_heard()
                self._show_status("paused" if isinstance(event, Paused) else "running")
                return
            case Finished():
                self._show_what_was_heard()
                self._show_end(event)
                return
        if time.monotonic() - self._shown_at >= SHOW_EVERY:
            self._show_what_was_heard()

    def _show_what_was_heard(self) -> None:
        """Bring the screen up to date with what was gathered."""
        heard = self._heard
        if heard.unseen_steps:
            steps, heard.unseen_steps = heard.unseen_steps, []
            last = heard.last_step = steps[-1]
            self.loss_chart.append([s.step for s in steps], [s.loss for s in steps])
            self._progress.value = last.step
            self._progress_text.value = readout.progress(last.step, last.total_steps)
        if heard.unseen_selection is not None:
            self.heatmap.update(heard.unseen_selection)
            heard.unseen_selection = None
        self._tiles.value = readout.tiles(self._numbers())
        self._shown_at = time.monotonic()

    def _show_samples(self, event: Sampled) -> None:
        if not self._heard.samples_before:
            self._heard.samples_before = event.samples
            self._samples.value = readout.samples(event.samples, (), None)
        else:
            before = self._heard.samples_before
            self._samples.value = readout.samples(before, event.samples, event.step)

    def _show_end(self, event: Finished) -> None:
        if event.error is not None:
            self._message.value = readout.message(event.error)
        self._show_status(event.reason)
        self._tiles.value = readout.tiles(self._numbers())  # no time is left

    def _numbers(self) -> readout.Numbers:
        return self._heard.numbers(goes_on=self.status in ("running", "paused"))

    # ---- the screen ----------------------------------------------------------------------------

    def _build(self, settings: ipywidgets.Box) -> None:
        self._header = Header(self._title, self._base.label, self._task.name)
        self._message = ipywidgets.HTML()
        self._tiles = ipywidgets.HTML()
        self._samples = ipywidgets.HTML()
        self._progress = ipywidgets.IntProgress(min=0, max=1, layout={"width": "auto"})
        self._progress_text = ipywidgets.HTML()
        self._train_button = button("Train", "play", button_style="primary")
        self._stop_button = button("Stop", "stop")
        self._pause_button = button("Pause", "pause")
        self._step_button = button("Step", "step-forward")
        self._train_button.on_click(self._on(self.train))
        self._pause_button.on_click(self._on(self._pause_or_resume))
        self._step_button.on_click(self._on(self.step))
        self._stop_button.on_click(self._on(self.stop))
        buttons = [self._train_button, self._pause_button, self._step_button, self._stop_button]
        transport = classed(
            ipywidgets.HBox([*buttons, self._progress, self._progress_text]),
            "vblora-transport",
        )
        numbers = classed(ipywidgets.VBox([self._tiles, self.loss_chart]), "vblora-numbers-now")
        views = classed(
            ipywidgets.VBox([transport, numbers, self.heatmap]),
            "vblora-views",
        )
        super().__init__(
            [
                Frame(),
                self._header,
                self._message,
                classed(ipywidgets.HBox([settings, views]), "vblora-columns"),
                self._samples,
            ]
        )
        self.add_class("vblora-panel")

    def _steer_rates(
        self, bank: ipywidgets.FloatLogSlider, logits: ipywidgets.FloatLogSlider
    ) -> None:
        """Let sliders change the rates of a run that goes on."""
        for rate, slider in (("bank", bank), ("logits", logits)):
            slider.observe(self._on(partial(self._change_rate, rate, slider)), "value")

    def _change_rate(self, rate: str, slider: ipywidgets.FloatLogSlider) -> None:
        """This one alone: a cell, or another panel, may have changed the others."""
        if self.session and self.status in ("running", "paused"):
            rates = replace(self.session.learning_rates, **{rate: slider.value})
            self.session.set_learning_rates(rates)

    def _on(self, action: Callable[[], Any]) -> Callable[[Any], None]:
        return answering(self._message, action)

    def _pause_or_resume(self) -> None:
        if self.status == "paused":
            self.resume()
        else:
            self.pause()

    def _reset(self, total_steps: int) -> None:
        """An empty screen, ready for a run of that many steps."""
        self._heard = Heard()
        self._shown_at = 0.0
        self.loss_chart.reset(total_steps)
        self.heatmap.selection = None
        self._message.value = ""
        self._samples.value = ""
        self._progress.max, self._progress.value = max(total_steps, 1), 0
        self._progress_text.value = readout.progress(0, total_steps) if total_steps else ""
        self._tiles.value = readout.tiles(self._numbers())

    def _show_status(self, status: str) -> None:
        self._status = status
        paused = status == "paused"
        under_way = paused or status == "running"
        self._header.show(status)
        self._train_button.disabled = under_way
        self._stop_button.disabled = not under_way
        # In the foreground, buttons are answered only when the run is over.
        self._pause_button.disabled = not under_way or self.driver == "foreground"
        self._pause_button.description = "Resume" if paused else "Pause"
        self._pause_button.icon = "play" if paused else "pause"
        self._step_button.disabled = not paused


def answering(place: ipywidgets.HTML, action: Callable[[], Any]) -> Callable[[Any], None]:
    """An action for a button, which can't raise to anyone: what goes wrong is shown in a place."""
    complaint = ""

    def on(_event: Any) -> None:
        nonlocal complaint
        try:
            action()
        except Exception as error:
            place.value = complaint = readout.message(error)
        else:
            if complaint and place.value == complaint:
                place.value = ""  # it is settled

    return on


def button(text: str, icon: str, **more: Any) -> ipywidgets.Button:
    return ipywidgets.Button(description=text, icon=icon, layout={"width": "auto"}, **more)


def classed(box: ipywidgets.Box, css_class: str) -> ipywidgets.Box:
    box.add_class(css_class)
    return box
