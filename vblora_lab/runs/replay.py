"""A recorded run, replayed without training and without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vblora_lab.errors import ConfigError
from vblora_lab.runs.events import Finished, Listener, Stepped
from vblora_lab.runs.steerable import SteerableRun
from vblora_lab.runs.trace import Trace


class Replay(SteerableRun):
    """Emits the events of a trace to listeners, as the recorded session did.

    Runs in the foreground or in a thread, and is paused, stepped and stopped as a
    `TrainingSession` is.

    Args:
        trace: a `Trace`, or the path of one.
        speed: how many times as fast as the run was; None for as fast as the listeners are.
        listeners: functions of one `Event`.

    Raises DataError for a path that holds no trace, and ConfigError for a speed of 0 or less.
    """

    def __init__(
        self,
        trace: Trace | str | Path,
        *,
        speed: float | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        if speed is not None and not speed > 0:
            raise ConfigError(f"speed={speed!r} must be a number above 0, or None for no waiting")
        super().__init__(listeners)
        self._recorded = trace if isinstance(trace, Trace) else Trace.load(trace)
        self._speed = speed

    def _work(self) -> Finished:
        seconds = 0.0
        for event in self._recorded.events:
            if isinstance(event, Finished):
                return event
            if isinstance(event, Stepped):
                if self._speed is not None:
                    # A resumed run counts its seconds anew, and then there is no wait.
                    self._control.sleep(max(0.0, event.seconds - seconds) / self._speed)
                seconds = event.seconds
            self._emit(event)
            if isinstance(event, Stepped) and self._after_step(event.step):
                break
        return Finished("stopped", self._step, seconds)
