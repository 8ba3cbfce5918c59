"""Fixtures made of what `scripted.py` holds."""

import pytest
from scripted import ScriptedSession, selection_of, small_opt


@pytest.fixture
def opt():
    return small_opt()


@pytest.fixture
def selection():
    return selection_of()


@pytest.fixture
def session_class(monkeypatch):
    """`ScriptedSession`, fresh, in the place of the panel's `TrainingSession`."""
    fresh = type("FreshSession", (ScriptedSession,), {"made": []})
    monkeypatch.setattr("vblora_lab.widgets.live.TrainingSession", fresh)
    return fresh


@pytest.fixture(autouse=True)
def _a_notebook_that_shows_threads(monkeypatch):
    """These tests run in a script, where a panel would train in the foreground."""
    monkeypatch.setenv("VBLORA_LAB_DRIVER", "thread")
