"""Recorded runs, told again."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from vblora_lab.errors import ConfigError, DataError
from vblora_lab.train import (
    Finished,
    Paused,
    Replay,
    Selected,
    Started,
    Stepped,
    Trace,
    TrainingSession,
    Working,
)

RUN = {"steps": 6, "batch_size": 2, "eval_examples": 2, "sample_count": 1}


@pytest.fixture(scope="module")
def recorded(base, task, tmp_path_factory):
    from vblora_lab.tuner.config import VBLoRAConfig

    out = tmp_path_factory.mktemp("run")
    config = VBLoRAConfig(r=2, num_vectors=16, vector_length=128, target_modules=["q_proj"])
    events = []
    session = TrainingSession(base, config, task, out=out, listeners=[events.append], **RUN)
    trace = session.run()
    told = [event for event in events if not isinstance(event, Working)]  # which no trace has
    return trace, told, out / "run.trace"


def assert_same_events(told, expected):
    assert [type(e) for e in told] == [type(e) for e in expected]
    for one, other in zip(told, expected, strict=True):
        if isinstance(one, Selected):
            assert one.step == other.step
            assert np.array_equal(one.selection.indices, other.selection.indices)
            assert np.abs(one.selection.weights - other.selection.weights).max() < 1e-3
        elif isinstance(one, Started):
            assert one.sub_vectors.modules == other.sub_vectors.modules
            assert (one.total_steps, one.stored_bytes) == (other.total_steps, other.stored_bytes)
        else:
            assert one == other


@pytest.mark.parametrize("driver", ["thread", "foreground"])
def test_a_replay_tells_what_the_session_told(recorded, driver):
    trace, events, path = recorded
    told = []
    replay = Replay(path, listeners=[told.append])
    replay.train(driver)
    again = replay.wait(60)
    assert_same_events(told, events)
    assert again.losses.tolist() == trace.losses.tolist()
    assert replay.status == trace.reason == "completed"


def test_all_drivers_give_the_same_losses_bit_for_bit(recorded, base, task):
    from vblora_lab.tuner.config import VBLoRAConfig

    trace, _, path = recorded
    config = VBLoRAConfig(r=2, num_vectors=16, vector_length=128, target_modules=["q_proj"])
    in_thread = TrainingSession(base, config, task, **RUN)
    in_thread.start()
    losses = [in_thread.wait(60).losses, Replay(path).run().losses]
    assert all(np.array_equal(trace.losses, other) for other in losses)


def test_a_replay_needs_no_torch(recorded):
    script = f"""
import sys
from vblora_lab.runs import Replay, Stepped
told = []
trace = Replay({str(recorded[2])!r}, listeners=[told.append]).run()
assert not {{"torch", "transformers", "peft"}} & set(sys.modules)
print([e.loss for e in told if isinstance(e, Stepped)])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == [e.loss for e in recorded[1] if isinstance(e, Stepped)]


def test_a_replay_is_paused_and_stopped_as_a_session(recorded):
    told, paused = [], threading.Event()
    replay = Replay(recorded[2], speed=1000, listeners=[told.append])
    replay.add_listener(lambda e: isinstance(e, Stepped) and e.step == 2 and replay.pause())
    replay.add_listener(lambda e: isinstance(e, Paused) and paused.set())
    replay.start()
    assert paused.wait(60) and replay.status == "paused"
    replay.stop()
    replay.wait(60)
    assert isinstance(told[-1], Finished) and told[-1].reason == "stopped" == replay.status
    assert [e.step for e in told if isinstance(e, Stepped)] == [1, 2]


def test_a_stop_does_not_wait_for_a_slow_replay(recorded):
    replay = Replay(recorded[2], speed=1e-9)
    replay.start()
    replay.stop()
    replay.wait(60)
    assert replay.status == "stopped"


def test_wrong_arguments(tmp_path):
    with pytest.raises(ConfigError, match="speed=0"):
        Replay(Trace(), speed=0)
    with pytest.raises(DataError, match="missing"):
        Replay(tmp_path / "missing.trace")
