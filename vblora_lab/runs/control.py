"""Steering a run from outside: pause, one step, go on, stop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Interrupted(Exception):
    """A stop was asked for during something that takes longer than a step."""


class Control:
    """What stands between the thread that trains and those that steer it.

    The training thread calls `between_steps` after each step. The other methods may be called from
    any thread, a signal handler or a listener, and return at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = math.inf  # steps that may still be taken; 0 or less while paused
        self._waiting = False
        self._stopping = False
        self._idle = 0.0

    @property
    def pausing(self) -> bool:
        """Whether a pause was asked for and not taken back, whether or not it has begun."""
        return self._allowed < math.inf

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping

    def check(self) -> None:
        """Raises `Interrupted` after a stop; call it within what takes longer than a step."""
        if self._stopping:
            raise Interrupted

    def pause(self) -> None:
        """Wait after the step in progress."""
        self._set(lambda: 0)

    def step(self) -> None:
        """Take one step, then wait again."""
        # If the pause has not begun yet, the step in progress does not count.
        self._set(lambda: 1 if self._waiting else 2)

    def resume(self) -> None:
        """Go on without waiting."""
        self._set(lambda: math.inf)

    def stop(self) -> None:
        """End after the step in progress, or at once if the run is paused."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def clock(self) -> float:
        """Seconds of a clock that stands still during pauses; only differences mean something."""
        return time.monotonic() - self._idle

    def sleep(self, seconds: float) -> None:
        """Let time pass in the thread that trains; a stop ends it early."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, timeout=seconds)

    def between_steps(self, on_pause: Callable[[], None], on_resume: Callable[[], None]) -> bool:
        """Count a step, wait while paused, and return whether to stop.

        The two functions are called before and after a wait, in this thread.
        """
        with self._changed:
            self._allowed -= 1
            if self._allowed > 0 or self._stopping:
                return self._stopping
            self._waiting = True  # before anyone hears of the pause and asks for a step
        begun = time.monotonic()
        try:
            on_pause()
            with self._changed:
                self._changed.wait_for(lambda: self._allowed > 0 or self._stopping)
        finally:
            self._waiting = False
        self._idle += time.monotonic() - begun
        on_resume()
        return self._stopping

    def _set(self, allowed: Callable[[], float]) -> None:
        with self._changed:
            self._allowed = allowed()
            self._changed.notify_all()
