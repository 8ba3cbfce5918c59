"""LiveTraining: choose an adapter, press Train, watch it learn.

The panel trains nothing itself. It builds a `TrainingSession` and shows what that says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from vblora_lab.bases import Base, load_base
from vblora_lab.data import Task, load_task
from vblora_lab.errors import SessionError
from vblora_lab.runs.events import Working
from vblora_lab.runs.frontend import Driver
from vblora_lab.train import SHORT_RUN_RATES, LearningRates, Trace, TrainingSession
from vblora_lab.train.one_at_a_time import check_none_trains
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.widgets import readout
from vblora_lab.widgets.controls import Controls
from vblora_lab.widgets.run_panel import RunPanel

CONFIG = VBLoRAConfig(num_vectors=64, vector_length=64)
"""Where the controls start: a bank that is small against mini-OPT. PEFT's defaults are for far
larger models."""
SAMPLE_EVERY = 50
"""Steps between sample texts, so that a run that is stopped early has some to show."""


class LiveTraining(RunPanel):
    """A panel that fine-tunes a base model with VB-LoRA and shows how.

    Args:
        base: Name of a base model for `load_base`, or a `Base`.
        task: Name of a task for `load_task`, or a `Task`.
        config: First values of the adapter's controls, and all settings that have no control.
        steps, batch_size, learning_rates, seed: First values of the run's controls.
        driver: "thread" trains on a background thread, so that the notebook stays usable;
            "foreground" trains in the thread that calls `train`, as Google Colab needs it, where
            updates from other threads are not shown. None lets `frontend.detect` choose.
        **session_options: Handed to `TrainingSession` (`eval_examples`, `sample_count`, ...). Here
            `sample_every` is 50 by default.
    """

    _title = "VB-LoRA, live"

    def __init__(
        self,
        base: str | Base = "mini-opt",
        task: str | Task = "restaurants",
        *,
        config: VBLoRAConfig | None = None,
        steps: int = 200,
        batch_size: int = 8,
        learning_rates: LearningRates | None = None,
        seed: int = 0,
        driver: Driver | None = None,
        **session_options: Any,
    ):
        self._base = load_base(base) if isinstance(base, str) else base
        self._task = load_task(task) if isinstance(task, str) else task
        self._session_options = {"sample_every": SAMPLE_EVERY, **session_options}
        self.controls = Controls(
            self._base.model,
            config or CONFIG,
            steps=steps,
            batch_size=batch_size,
            learning_rates=learning_rates or SHORT_RUN_RATES,
            seed=seed,
        )
        self._preparing = threading.Lock()  # a button's thread prepares what a cell may wait for
        self._unwanted = False  # a stop was asked for meanwhile
        super().__init__(driver, self.controls.box)
        self._steer_rates(*self.controls.rate_sliders)
        self._reset(total_steps=0)
        self._show_status("ready")

    # ---- what a person or a cell does ----------------------------------------------------------

    @property
    def config(self) -> VBLoRAConfig:
        """The adapter that the controls describe. Raises `ConfigError` if they don't fit."""
        return self.controls.config()

    def train(self, wait: bool = False) -> Trace | None:
        """Train a fresh adapter with the settings of the controls, as the button does.

        Args:
            wait: Return when the run is over, with its trace. A foreground run always does.

        Raises:
            SessionError: If a run is going on.
            ConfigError, TargetError: If the settings don't fit together or don't fit the model; the
                panel shows the same sentence, and nothing was started.
            Exception: What made a run fail that was waited for; the panel shows that too.
        """
        if self.status in ("running", "paused"):
            raise SessionError("A run is going on. Stop it, or wait for its end, before the next.")
        before, session_before = self.status, self.session
        self._unwanted = False
        with self._preparing:
            session = self._prepare()
            if self.driver == "thread":
                self._begin(session.start, before, session_before)
        if self._unwanted:
            super().stop()
        if self.driver == "foreground":
            return self._begin(session.run, before, session_before)
        return self.wait() if wait else None

    def stop(self) -> None:
        """End the run after the step it is at, or as soon as it begins if it is being prepared.

        Does nothing if none is going on.
        """
        self._unwanted = True
        if not self._preparing.locked():
            super().stop()

    def wait(self, timeout: float | None = None) -> Trace | None:
        """Wait for the end of the run, also of one that another thread prepares: see `RunPanel`."""
        try:
            ready = self._preparing.acquire(timeout=-1 if timeout is None else timeout)
        except KeyboardInterrupt:
            self.stop()
            ready = self._preparing.acquire()
        if not ready:
            raise TimeoutError(f"still preparing after {timeout} seconds")
        self._preparing.release()
        return super().wait(timeout)

    def _prepare(self) -> TrainingSession:
        """The session that the controls describe, in the place of the one before."""
        before = self.status
        self._show_status("running")  # at once: a second click must not make a second session
        self._stop_button.disabled = True  # there is nothing to stop yet
        self._header.tell(Working(0, "preparing the adapter"))
        try:
            check_none_trains()
            session = self._new_session()
        except BaseException as error:
            self._message.value = readout.message(error)
            self._show_status(before)
            raise
        self.session = session
        self._reset(total_steps=self.controls.steps.value)
        self._show_status("running")
        return session

    def _begin(self, start: Callable[[], Any], before: str, session_before: Any) -> Any:
        """Start the session; if that is refused, the panel is as it was before."""
        session = self._the_session()
        try:
            return start()
        except BaseException as error:
            if session.status == "ready":  # another began just now
                self._message.value = readout.message(error)
                self.session = session_before
                self._show_status(before)
            raise

    def _new_session(self) -> TrainingSession:
        """What the controls describe, ready to be run."""
        return TrainingSession(self._base, self.config, self._task, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "steps": self.controls.steps.value,
            "batch_size": self.controls.batch_size.value,
            "learning_rates": self.controls.learning_rates(),
            "seed": self.controls.seed.value,
            "listeners": (self._listen,),
            **self._session_options,
        }

    # ---- the screen ----------------------------------------------------------------------------

    def _show_status(self, status: str) -> None:
        super()._show_status(status)
        self.controls.enable(status not in ("running", "paused"))
