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
