"""Pause, step, resume, stop and new rates; what is refused meanwhile."""

import copy
import pickle
import queue
import signal
import threading

import numpy as np
import pytest
import torch

from tests.cases import CASES
from vblora_lab.errors import ConfigError, SessionError
from vblora_lab.train import (
    Evaluated,
    Finished,
    LearningRates,
    Paused,
    Resumed,
    Sampled,
    Stepped,
    TrainingSession,
)
from vblora_lab.train.locked import locked
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import add_adapter

SMALL = {"batch_size": 2, "eval_examples": 0, "sample_count": 0}
LONG = 60  # seconds to wait for what must come


class Heard:
    """A listener whose events another thread waits for."""

    def __init__(self):
        self.all, self._new = [], queue.Queue()

    def __call__(self, event):
        self.all.append(event)
        self._new.put(event)

    def wait_for(self, kind):
        while not isinstance(event := self._new.get(timeout=LONG), kind):
            pass
        return event


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def session(base, task, config, heard):
    session = TrainingSession(base, config, task, steps=500, listeners=[heard], **SMALL)
    yield session
    session.stop()
    session.wait(LONG)


def pause_at(session, heard, step):
    """Start, and pause after this very step: in the training thread, so that none can follow."""
    session.add_listener(lambda e: isinstance(e, Stepped) and e.step == step and session.pause())
    session.start()
    return heard.wait_for(Paused)


def test_pause_step_resume_stop(session, heard):
    assert pause_at(session, heard, 3).step == 3
    assert session.status == "paused"
    frozen = session.model.state_dict()["base_model.vblora_vector_bank.default"].clone()
    session.step()
    assert heard.wait_for(Stepped).step == 4
    assert heard.wait_for(Paused).step == 4
    session.step()
    assert heard.wait_for(Paused).step == 5
    now = session.model.state_dict()["base_model.vblora_vector_bank.default"]
    assert not torch.equal(frozen, now), "a step is a step"
    session.resume()
    assert heard.wait_for(Resumed).step == 5
    assert heard.wait_for(Stepped).step == 6
    session.stop()
    session.wait(LONG)
    assert session.status == "stopped"
    steps = [e.step for e in heard.all if isinstance(e, Stepped)]
    assert steps == list(range(1, len(steps) + 1))


def test_stop_ends_a_pause_without_another_step(session, heard):
    pause_at(session, heard, 2)
    session.stop()
    assert heard.wait_for(Finished).reason == "stopped"
    assert [e.step for e in heard.all if isinstance(e, Stepped)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["evaluation", "writing"])
@pytest.mark.parametrize("step", [0, 2])
def test_a_stop_cuts_short_what_takes_longer_than_a_step(base, task, config, tmp_path, at, step):
    """The first pass of an evaluation, or the first token of a text, that comes after a stop."""
    every = {"evaluation": "eval_every", "writing": "sample_every"}[at]
    session = TrainingSession(
        base, config, task, steps=9, batch_size=2, eval_examples=8, sample_count=1, out=tmp_path,
        **{every: 2},
    )  # fmt: skip
    passes = []

    def look(module, args, kwargs):
        if (
            not module.training
            and session._step == step
            and ("labels" in kwargs) == (at == "evaluation")
        ):
            passes.append(kwargs)
            session.stop()

    session.model.get_base_model().register_forward_pre_hook(look, with_kwargs=True)
    trace = session.run()
    assert len(passes) == 1, "there would be 12 batches, or 80 tokens"
    assert trace.reason == "stopped" and trace.steps.tolist() == [1, 2][: max(step, 1)]
    told = [
        e.step for e in trace.events if isinstance(e, Sampled if at == "writing" else Evaluated)
    ]
    assert told == [0][:step]
    assert (tmp_path / f"checkpoint-{max(step, 1)}").is_dir() and (tmp_path / "adapter").is_dir()


@pytest.mark.slow
def test_a_pause_changes_nothing_and_counts_as_no_time(base, task, config, heard):
    plain = TrainingSession(base, config, task, steps=5, **SMALL).run()
    session = TrainingSession(base, config, task, steps=5, listeners=[heard], **SMALL)
    pause_at(session, heard, 3)
    before = [e for e in heard.all if isinstance(e, Stepped)][-1].seconds
    threading.Event().wait(3)
    session.resume()
    trace = session.wait(LONG)
    assert trace.losses.tolist() == plain.losses.tolist()
    last = [e for e in heard.all if isinstance(e, Stepped)][-1]
    assert last.steps_per_second == pytest.approx(5 / last.seconds)
    assert heard.wait_for(Finished).seconds < before + session.wait().seconds + 3
    idle = session._control._idle
    assert idle >= 3, "the clock of the run stood still"


def test_new_rates_follow_the_rest_of_the_schedule(base, task, config, heard):
    session = TrainingSession(base, config, task, steps=6, listeners=[heard], **SMALL)
    pause_at(session, heard, 3)
    session.set_learning_rates(LearningRates(bank=3e-2, logits=0.0))
    session.resume()
    session.wait(LONG)
    rates = [e.learning_rates for e in heard.all if isinstance(e, Stepped)]
    shape = np.array([0, 5, 4, 3, 2, 1]) / 5
    peak = np.array([1e-2] * 3 + [3e-2] * 3)
    assert [r["bank"] for r in rates] == pytest.approx(peak * shape)
    assert [r["logits"] for r in rates[3:]] == [0, 0, 0]


# --- refusals


def test_wishes_that_make_no_sense_are_refused(session, heard):
    for wish in (session.pause, session.step, session.resume):
        with pytest.raises(SessionError, match=r"the session is ready; start\(\) it first"):
            wish()
    pause_at(session, heard, 1)
    with pytest.raises(SessionError, match="this session is paused; a session trains once"):
        session.start()
    session.resume()
    with pytest.raises(SessionError, match="there is no pause to end"):
        session.resume()
    with pytest.raises(SessionError, match=r"pause\(\) it first"):
        session.step()
    session.stop()
    session.wait(LONG)
    with pytest.raises(SessionError, match="the session is stopped; make a new one"):
        session.set_learning_rates(LearningRates())


def test_rates_of_another_kind_are_refused_where_they_are_set(session, heard):
    pause_at(session, heard, 1)
    with pytest.raises(ConfigError, match=r"rates=0\.1 must be LearningRates"):
        session.set_learning_rates(0.1)
    assert session.status == "paused"


def test_the_foreground_can_not_wait_for_itself(base, task, config):
    session = TrainingSession(base, config, task, steps=5, **SMALL)
    session.add_listener(lambda e: isinstance(e, Stepped) and session.pause())
    with pytest.raises(SessionError, match="could not end the pause"):
        session.run()


def test_two_sessions_do_not_train_at_once(session, heard, base, task, config):
    other = TrainingSession(base, config, task, steps=1, **SMALL)
    pause_at(session, heard, 1)
    for begin in (other.start, other.run):
        with pytest.raises(SessionError, match="another session is training in this process"):
            begin()
    assert other.status == "ready"
    session.stop()
    session.wait(LONG)
    assert other.run().reason == "completed"


def test_the_model_is_not_edited_while_it_trains(session, heard, tmp_path):
    model = session.model
    model.save_pretrained(tmp_path)
    names = list(model.state_dict())
    pause_at(session, heard, 1)
    edits = [
        lambda: add_adapter(model, "other", VBLoRAConfig(vector_length=128, num_vectors=16)),
        lambda: model.delete_adapter("default"),
        lambda: model.merge_adapter(),
        lambda: model.base_model.merge_adapter(),
        lambda: model.merge_and_unload(),
        lambda: model.unload(),
        lambda: model.set_adapter("default"),
        lambda: model.load_adapter(tmp_path, "default"),
        lambda: model.load_state_dict(model.state_dict()),
        lambda: model.base_model.requires_grad_(False),
        lambda: model.half(),
    ]
    for edit in edits:
        with pytest.raises(SessionError, match="this model is being trained"):
            edit()
    assert list(model.state_dict()) == names and list(model.peft_config) == ["default"]
    session.stop()
    session.wait(LONG)
    model.merge_adapter()
    model.unmerge_adapter()
    model.delete_adapter("default")


# --- the foreground


def test_an_interrupt_lets_the_step_end(base, task, config, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    session = TrainingSession(base, config, task, steps=500, out=tmp_path, **SMALL)
    session.add_listener(
        lambda e: isinstance(e, Stepped) and e.step == 2 and signal.raise_signal(signal.SIGINT)
    )
    trace = session.run()
    assert session.status == "stopped" and trace.steps.tolist() == [1, 2]
    assert (tmp_path / "checkpoint-2").is_dir() and (tmp_path / "adapter").is_dir()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("bad", [{"save_every": -1}, {"keep": 0}, {"eval_every": -1}])
def test_wrong_numbers_are_refused(base, task, config, bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrainingSession(base, config, task, **bad)


def test_to_resume_needs_a_folder(base, task, config):
    with pytest.raises(ConfigError, match="needs out"):
        TrainingSession(base, config, task, resume=True)


@pytest.mark.parametrize("driver", ["thread", "foreground"])
def test_the_environment_chooses_the_driver(base, task, config, heard, monkeypatch, driver):
    monkeypatch.setenv("VBLORA_LAB_DRIVER", driver)
    session = TrainingSession(base, config, task, steps=1, listeners=[heard], **SMALL)
    where = []
    session.add_listener(lambda _: where.append(threading.current_thread()))
    returned = session.train()
    session.wait(LONG)
    in_here = set(where) == {threading.current_thread()}
    assert in_here == (driver == "foreground") == (returned is not None)


def test_a_copy_of_a_model_in_training_is_free():
    """The copy, or what was pickled, is another model, which nobody trains."""
    model = CASES["opt"].ours()
    config = VBLoRAConfig(**CASES["opt"].config)
    with locked(model):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other.add_adapter("second", config)
            other.merge_adapter(["default"])
            other.base_model.unmerge_adapter()
            assert list(other.peft_config) == ["default", "second"]
        with pytest.raises(SessionError, match="is being trained"):
            model.add_adapter("second", config)
    assert list(model.peft_config) == ["default"]
    model.half()
