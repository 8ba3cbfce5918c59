"""A run in the foreground or in a background thread, steered while it goes on.

`TrainingSession` and `Replay` say what is done in the run. This module needs no torch.
"""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from vblora_lab.errors import SessionError
from vblora_lab.runs.control import Control
from vblora_lab.runs.events import Event, Finished, Listener, Paused, Reason, Resumed
from vblora_lab.runs.frontend import Driver, detect
from vblora_lab.runs.trace import Trace, TraceRecorder


class SteerableRun(ABC):
    """A run that happens once, can be steered, and reports to its listeners what happens.

    Args:
        listeners: functions of one `Event`, called in the thread of the run.
        events: those of an earlier part of the run, which `trace` begins with.
    """

    def __init__(self, listeners: Iterable[Listener], events: Iterable[Event] = ()) -> None:
        self.status: Reason | str = "ready"
        self._recorder = TraceRecorder(events)
        self._listeners: list[Listener] = [self._recorder, *listeners]
        self._control = Control()
        self._thread: threading.Thread | None = None
        self._runs_in: int | None = None  # the ident of a thread
        self._error: BaseException | None = None
        self._step = 0

    @property
    def trace(self) -> Trace:
        """The run so far."""
        return self._recorder.trace

    def add_listener(self, listener: Listener) -> None:
        """Let a function hear the events from here on."""
        self._listeners.append(listener)

    # --- foreground and background

    def train(self, driver: Driver | None = None) -> Trace | None:
        """`run` in the "foreground" and return the trace, or `start` a "thread" and return None.

        driver: None asks `frontend.detect` which of the two shows live widgets here.
        """
        if (driver or detect().driver) == "foreground":
            return self.run()
        self.start()
        return None

    def run(self) -> Trace:
        """Run in this thread. An interrupt (Ctrl-C, the kernel's stop button) is a clean stop.

        The first interrupt lets the step in progress end; a second one doesn't. A failure is
        reported to the listeners and then raised.
        """
        self._claim()
        with self._interrupt_stops():
            self._carry_out()
        if self._error is not None:
            raise self._error
        return self.trace

    def start(self) -> None:
        """Run in a background thread, in a copy of this context (ipykernel keeps its state there).

        Returns at once; `wait` gives the trace, or raises what made the run fail.
        """
        self._claim()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._carry_out,), name="vblora-training", daemon=True
        )
        self._thread.start()

    def wait(self, timeout: float | None = None) -> Trace:
        """Wait for the background run and return its trace; raises what made it fail.

        timeout: seconds; a run that still goes on then raises `TimeoutError`.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"still training after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self.trace

    # --- steering

    def pause(self) -> None:
        """Wait after the step in progress; returns at once.

        Raises `SessionError` where nobody could end the pause: in the thread that trains in the
        foreground.
        """
        self._check_under_way("pause")
        if self._thread is None and threading.get_ident() == self._runs_in:
            raise SessionError(
                "pause: this thread trains, so it could not end the pause. Use stop(), and go on "
                "later with resume=True; or train in the background with start()."
            )
        self._control.pause()

    def step(self) -> None:
        """While paused: take one step, then wait again; returns at once."""
        self._check_under_way("step")
        if not self._control.pausing:
            raise SessionError("step: the session is running; pause() it first.")
        self._control.step()

    def resume(self) -> None:
        """End a pause; returns at once."""
        self._check_under_way("resume")
        if not self._control.pausing:
            raise SessionError("resume: the session is running; there is no pause to end.")
        self._control.resume()

    def stop(self) -> None:
        """Ask for an end after the step in progress; returns at once."""
        self._control.stop()

    def _check_under_way(self, wish: str) -> None:
        """Raise `SessionError` unless there is a run to steer."""
        if self.status not in ("running", "paused"):
            hint = "start() it first" if self.status == "ready" else "make a new one"
            raise SessionError(f"{wish}: the session is {self.status}; {hint}.")

    # --- the run: what a kind of run defines, and what is done around it

    @abstractmethod
    def _work(self) -> Finished:
        """Emit events, call `_after_step` after each step, and return the last event."""

    def _claim(self) -> None:
        """Begin the one run there is, or raise `SessionError` with nothing changed."""
        if self.status != "ready":
            raise SessionError(
                f"this session is {self.status}; a session trains once. Make a new "
                f"{type(self).__name__}."
            )
        self.status = "running"

    def _release(self) -> None:  # noqa: B027, there may be nothing to do
        """Give back what `_claim` took, before the last event is emitted."""

    def _carry_out(self) -> None:
        self._runs_in = threading.get_ident()
        start = self._control.clock()
        end = None
        reason: Reason = "failed"
        try:
            end = self._work()
        except KeyboardInterrupt:
            reason = "stopped"
        except BaseException as error:  # kept for wait(), and reported to every listener
            self._error = error
        finally:
            if end is None:
                seconds = self._control.clock() - start
                end = Finished(reason, self._step, seconds, self._error)
            self.status = end.reason
            self._release()
            self._emit_last(end)

    def _after_step(self, step: int) -> bool:
        """Wait while the run is paused; returns whether to stop."""

        def on_pause() -> None:
            self.status = "paused"
            self._emit(Paused(step))

        def on_resume() -> None:
            self.status = "running"
            self._emit(Resumed(step))

        return self._control.between_steps(on_pause, on_resume)

    def _emit(self, event: Event) -> None:
        self._step = getattr(event, "step", self._step)
        for listener in self._listeners:
            listener(event)

    def _emit_last(self, end: Finished) -> None:
        """Let every listener hear the end, even if another fails; the first failure is kept."""
        self._step = end.step
        for listener in self._listeners:
            try:
                listener(end)
            except BaseException as error:  # kept for run() and wait(), which raise it
                self._error = self._error or error

    @contextlib.contextmanager
    def _interrupt_stops(self) -> Iterator[None]:
        """Inside the block, the first SIGINT is `stop`. Only the main thread can arrange that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def on_interrupt(*_: Any) -> None:
            signal.signal(signal.SIGINT, before)
            self.stop()

        signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
