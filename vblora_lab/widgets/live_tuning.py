"""LiveTuning: a search for the best adapter in so many bytes, watched while it goes on.

The panel trains nothing itself. It begins a `Search`, shows what that has found, and opens what is
chosen in the explorer or in the studio.
"""

from __future__ import annotations

import contextvars
import html
import threading
import time
from pathlib import Path
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from vblora_lab.bases import MINI_OPT, Base, load_base
from vblora_lab.data import Task, load_task
from vblora_lab.errors import ConfigError, SessionError
from vblora_lab.runs.events import Event, Started, Stepped, Working
from vblora_lab.runs.frontend import Driver, detect
from vblora_lab.train import TrainingSession
from vblora_lab.train.one_at_a_time import check_none_trains
from vblora_lab.train.tune import Search
from vblora_lab.train.tune_result import Tried, Tuned
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.widgets import readout
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets.config_explorer import ConfigExplorer
from vblora_lab.widgets.front_chart import FrontChart
from vblora_lab.widgets.header import Header
from vblora_lab.widgets.run_panel import SHOW_EVERY, Frame, answering, button, classed
from vblora_lab.widgets.studio import TrainingStudio
from vblora_lab.widgets.tuning_controls import TuningControls

SAID = 3
"""How many of the search's last sentences are on the screen, below the first, on what it costs."""


class LiveTuning(Pictured, ipywidgets.VBox):
    """A panel that searches for the config and the learning rates that do best in so many bytes.

    Each trial that ends becomes a dot, file size against validation loss. A click on one shows its
    config, which then opens in the explorer or in the studio, below.

    Args:
        base, task: as for `LiveTraining`.
        bytes, trials, steps, batch_size, seed: first values of the controls; as for `tune`.
        out: first value of the folder that the search is kept in, so that the same settings go on
            with it later; "" to keep nothing.
        driver: as for `LiveTraining`.
        **options: handed to `tune` (`eval_examples`, `prune_after`, ...).

    Raises MissingExtraError if Optuna isn't installed, when a search begins.
    """

    def __init__(
        self,
        base: str | Base = MINI_OPT,
        task: str | Task = "restaurants",
        *,
        bytes: int = 250_000,
        trials: int = 40,
        steps: int = 200,
        batch_size: int = 8,
        seed: int = 0,
        out: str | Path = "",
        driver: Driver | None = None,
        **options: Any,
    ):
        if driver not in (None, "thread", "foreground"):
            raise ConfigError(f"driver={driver!r}; allowed: 'thread', 'foreground' or None")
        self._base = load_base(base) if isinstance(base, str) else base
        self._task = load_task(task) if isinstance(task, str) else task
        self.driver: Driver = driver or detect().driver
        self._options = options
        self._search: Search | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._said: list[str] = []
        self._shown_at = 0.0
        self.opened: ConfigExplorer | TrainingStudio | None = None
        self.chart = FrontChart(bytes)
        self.controls = TuningControls(bytes, trials, steps, batch_size, seed, out)
        self._build()
        self._show_status("ready")

    # ---- what a person or a cell does ----------------------------------------------------------

    @property
    def status(self) -> str:
        """ "ready", "searching", "stopping", "completed", "stopped" or "failed", as shown."""
        return self._status

    @property
    def tuned(self) -> Tuned | None:
        """What the search has found so far; None before the first."""
        return None if self._search is None else self._search.result()

    def search(self, wait: bool = False) -> Tuned | None:
        """Begin the search that the controls describe, or go on with the one in that folder.

        Args:
            wait: return when it is over, with its result. A foreground search always does.

        Raises:
            SessionError: something trains already.
            Exception: what `tune` raises; the panel shows that too.
        """
        if self._status in ("searching", "stopping"):
            raise SessionError("A search is going on. Stop it, or wait for its end.")
        before = self._status
        self._show_status("searching")  # at once: a second click must not begin a second one
        try:
            check_none_trains()
            self._begin(self._make_search())
        except BaseException as error:
            self._message.value = readout.message(error)
            self._show_status(before)
            raise
        if self.driver == "foreground":
            self._carry_out()
        else:
            work = contextvars.copy_context().run  # ipykernel keeps its state there
            self._thread = threading.Thread(target=work, args=(self._carry_out,), daemon=True)
            self._thread.start()
            if not wait:
                return None
        return self.wait()

    def stop(self) -> None:
        """End the search after the step in progress. Does nothing if none is going on."""
        if self._status == "searching" and self._search is not None:
            self._show_status("stopping")
            self._search.stop()

    def wait(self, timeout: float | None = None) -> Tuned | None:
        """Wait for the end of the search, and return what it found; None if none was begun.

        An interrupt of the kernel stops it after the step in progress.

        Raises:
            TimeoutError: it still goes on after so many seconds.
            Exception: what made it fail.
        """
        if self._thread is not None:
            try:
                self._thread.join(timeout)
            except KeyboardInterrupt:
                self.stop()
                self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"the search still goes on after {timeout} s")
        if self._error is not None:
            raise self._error
        return self.tuned

    @property
    def chosen(self) -> Tried | None:
        """The trial whose dot was clicked; None for none."""
        trials = self.tuned.trials if self.tuned else ()
        return next((trial for trial in trials if trial.name == self.chart.chosen), None)

    def open_explorer(self) -> ConfigExplorer:
        """Open the chosen trial's config in an explorer, below. Raises `SessionError`."""
        trial = self._vblora_trial()
        explorer = ConfigExplorer(self._base.model, trial.config)
        self._open(explorer)
        return explorer

    def open_studio(self) -> TrainingStudio:
        """Open a studio for the chosen trial, below, ready to train it. Raises `SessionError`."""
        trial = self._vblora_trial()
        assert isinstance(trial.config, VBLoRAConfig)
        session = TrainingSession(
            self._base, trial.config, self._task, learning_rates=trial.learning_rates,
            steps=self.controls.steps.value, batch_size=self.controls.batch_size.value,
            seed=self.controls.seed.value,
        )  # fmt: skip
        studio = TrainingStudio(session, driver=self.driver)
        self._open(studio)
        return studio

    def figure(self) -> Figure | None:
        """The chart as a matplotlib Figure; None while no trial has run to its end."""
        return self.chart.figure()

    def _picture(self) -> Figure | None:
        return self.figure()

    # ---- the search ----------------------------------------------------------------------------

    def _make_search(self) -> Search:
        settings = {**self.controls.settings(), **self._options}
        return Search(self._base, self._task, tell=self._tell, listeners=[self._listen], **settings)

    def _begin(self, search: Search) -> None:
        self._search, self._error, self._said = search, None, []
        self._asked = self.controls.trials.value
        self._message.value = self._told.value = ""
        self._show_trials()

    def _carry_out(self) -> None:
        """Runs in the search's thread, or in that of the cell."""
        assert self._search is not None
        try:
            self._search.run(self._asked)
        except KeyboardInterrupt:
            self._show_end("stopped")
        except BaseException as error:
            self._error = error
            self._message.value = readout.message(error)
            self._show_end("failed")
        else:
            self._show_end("stopped" if self._search.stopped else "completed")

    def _tell(self, sentence: str) -> None:
        self._said = [*self._said[:1], *[*self._said[1:], sentence][-SAID:]]
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._said)
        self._told.value = f'<div class="vblora-help" role="log">{lines}</div>'
        self._show_trials()

    def _listen(self, event: Event) -> None:
        if isinstance(event, Working):
            self._header.tell(event)
            return
        self._header.tell(None)
        if isinstance(event, Started):
            self._progress.max, self._progress.value = max(event.total_steps, 1), 0
        elif isinstance(event, Stepped) and time.monotonic() - self._shown_at >= SHOW_EVERY:
            self._progress.value = event.step
            self._shown_at = time.monotonic()

    # ---- the screen ----------------------------------------------------------------------------

    def _build(self) -> None:
        self._header = Header("VB-LoRA, tuned", self._base.label, self._task.name)
        self._message, self._told = ipywidgets.HTML(), ipywidgets.HTML()
        self._progress = ipywidgets.IntProgress(min=0, max=1, layout={"width": "auto"})
        self._progress_text = ipywidgets.HTML()
        self._search_button = button("Search", "play", button_style="primary")
        self._stop_button = button("Stop", "stop")
        self._explorer_button = button("Open in the explorer", "sliders")
        self._studio_button = button("Train in the studio", "play")
        for pressed, action in (
            (self._search_button, self.search),
            (self._stop_button, self.stop),
            (self._explorer_button, self.open_explorer),
            (self._studio_button, self.open_studio),
        ):
            pressed.on_click(answering(self._message, action))
        self.chart.observe(self._show_choice, "chosen")
        self._choice = ipywidgets.HTML()
        self._place = classed(ipywidgets.VBox(), "vblora-opened")
        columns = classed(ipywidgets.HBox([self.controls.box, self._views()]), "vblora-columns")
        panel = ipywidgets.VBox([Frame(), self._header, self._message, columns])
        super().__init__([classed(panel, "vblora-panel"), self._place])
        self._show_choice()

    def _views(self) -> ipywidgets.Box:
        transport = classed(
            ipywidgets.HBox(
                [self._search_button, self._stop_button, self._progress, self._progress_text]
            ),
            "vblora-search",
        )
        choices = classed(
            ipywidgets.HBox([self._explorer_button, self._studio_button]), "vblora-choices"
        )
        views = [transport, self._told, self.chart, self._choice, choices]
        return classed(ipywidgets.VBox(views), "vblora-views")

    def _show_trials(self) -> None:
        assert self._search is not None
        tuned = self._search.result()
        self.chart.show(tuned)
        done = len(tuned.trials)
        text = f"{done} of {max(self._asked, done)} trials"
        self._progress_text.value = f'<div class="vblora-steps">{text}</div>'

    def _show_end(self, status: str) -> None:
        self._progress.value = 0
        self._show_trials()
        self._show_status(status)

    def _show_status(self, status: str) -> None:
        self._status = status
        under_way = status in ("searching", "stopping")
        self._header.show(status)
        self._search_button.disabled = under_way
        self._stop_button.disabled = status != "searching"
        self.controls.enable(not under_way)

    def _show_choice(self, _change: Any = None) -> None:
        trial = self.chosen
        fits = trial is not None and trial.method == "vblora"
        self._explorer_button.disabled = self._studio_button.disabled = not fits
        if trial is None:
            self._choice.value = ""
            return
        assert self.tuned is not None
        code = html.escape(self.tuned.code_of(trial))
        self._choice.value = (
            f'<details class="vblora-script"><summary>Python that trains {trial.name} again'
            f"</summary><pre>{code}</pre></details>"
        )

    def _vblora_trial(self) -> Tried:
        trial = self.chosen
        if trial is None or trial.method != "vblora":
            raise SessionError(
                "Choose a VB-LoRA trial first: click its dot, or set chart.chosen to its name."
            )
        return trial

    def _open(self, widget: ConfigExplorer | TrainingStudio) -> None:
        self.opened = widget
        self._place.children = (widget,)
