"""Pausing, stepping and stopping, as the training thread sees them."""

from __future__ import annotations

import threading

import pytest

from vblora_lab.runs.control import Control


def test_a_step_asked_for_as_soon_as_the_pause_is_known_is_one_step():
    control = Control()
    control.pause()
    pauses = []

    def on_pause() -> None:
        pauses.append(len(pauses))
        control.step() if len(pauses) == 1 else control.stop()

    assert control.between_steps(on_pause, lambda: None) is False  # the one step may be taken
    assert control.between_steps(on_pause, lambda: None) is True  # and it waits again before more
    assert pauses == [0, 1]


def test_a_step_asked_for_before_the_pause_does_not_count_the_one_in_progress():
    control = Control()
    control.pause()
    control.step()
    assert control.between_steps(pytest.fail, pytest.fail) is False
    paused = threading.Event()
    stops = []
    thread = threading.Thread(
        target=lambda: stops.append(control.between_steps(paused.set, lambda: None))
    )
    thread.start()
    assert paused.wait(60)
    control.stop()
    thread.join(60)
    assert stops == [True]


def test_a_listener_that_fails_leaves_no_pause_behind():
    control = Control()
    control.pause()

    def on_pause() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control.between_steps(on_pause, lambda: None)
    control.step()  # of a pause that has not begun: the step in progress doesn't count
    assert control.between_steps(pytest.fail, pytest.fail) is False
