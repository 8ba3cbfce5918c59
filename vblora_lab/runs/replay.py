"""The third driver: a recorded run, told again without training, and without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vblora_lab.errors import ConfigError
from vblora_lab.runs.driving import Driven
from vblora_lab.runs.events import Finished, Listener, Stepped
from vblora_lab.runs.trace import Trace


class Replay(Driven):
    """Tells listeners the events of a trace, as the session did that recorded it.

    Runs in either driver and is paused, stepped and stopped as a `TrainingSession` is.

    Args:
        trace: a `Trace`, or the path of one.
        speed: times as fast as the run was; None for as fast as listeners take it.
        listeners: functions of one `Event`.

    Raises DataError for a path that holds no trace, ConfigError for a speed that is none.
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
                    # Where a resumed run began to count anew, there is nothing to wait for.
                    self._control.sleep(max(0.0, event.seconds - seconds) / self._speed)
                seconds = event.seconds
            self._emit(event)
            if isinstance(event, Stepped) and self._after_step(event.step):
                break
        return Finished("stopped", self._step, seconds)
