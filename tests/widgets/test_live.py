"""The panel: controls become a config, events become a picture, failures become sentences."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vblora_lab.bases import Base
from vblora_lab.errors import ConfigError, SessionError, TargetError
from vblora_lab.train import LearningRates, Stepped, Working
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.widgets import BankHeatmap, LiveTraining
from vblora_lab.widgets.run_panel import SHOW_EVERY


@pytest.fixture
def make_panel(opt, session_class):
    def make(**options):
        config = VBLoRAConfig(
            r=2, num_vectors=16, vector_length=16, target_modules=["q_proj", "fc1"],
            vblora_dropout=0.25,
        )  # fmt: skip
        options = {"config": config, "steps": 40, **options}
        return LiveTraining(Base(opt, None), SimpleNamespace(name="a-task"), **options)

    return make


@pytest.fixture
def panel(make_panel):
    return make_panel()


def losses(panel):
    chart = panel.loss_chart
    return np.frombuffer(chart.closed + chart.opened, "<f4").reshape(-1, 3)[:, 1]


def shown(panel):
    """All text of the panel's HTML widgets."""
    parts = (panel._header, panel._message, panel._tiles, panel._progress_text, panel._samples)
    return "\n".join(part.value for part in parts)


# ---- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["check_none_trains", "TrainingSession.start"])
@pytest.mark.parametrize(
    "error", [SessionError("another session is training"), KeyboardInterrupt()]
)
def test_a_refused_or_interrupted_start_leaves_the_panel_as_it_was(
    make_panel, monkeypatch, when, error
):
    panel = make_panel(driver="thread")
    panel.train(wait=True)
    session, status, trace = panel.session, panel.status, panel.trace

    def refuse(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"vblora_lab.widgets.live.{when}", refuse)
        with pytest.raises(type(error)):
            panel.train()
    assert (panel.session, panel.status, panel.trace) == (session, status, trace)
    assert panel.status == "completed" and "\u2715" in panel._message.value
    assert panel.train(wait=True) is not None  # and it can be tried again


@pytest.fixture
def slow_session(session_class, monkeypatch):
    """A session that is being made until `go` is set; `begun` is set when that has begun."""
    begun, go = threading.Event(), threading.Event()

    class Slow(session_class):
        hold = True

        def __init__(self, *arguments, **options):
            begun.set()
            assert go.wait(10)
            super().__init__(*arguments, **options)

    monkeypatch.setattr("vblora_lab.widgets.live.TrainingSession", Slow)
    return SimpleNamespace(made=Slow.made, begun=begun, go=go)


def test_a_stop_while_a_run_is_prepared_ends_it_and_a_wait_waits_for_it(make_panel, slow_session):
    """What the next cell of the notebook does, run right after the button."""
    panel = make_panel(driver="thread")
    threading.Thread(target=panel.train, daemon=True).start()  # as the button's thread does
    assert slow_session.begun.wait(10) and "preparing the adapter" in panel._header.value
    with pytest.raises(TimeoutError, match="still preparing"):
        panel.wait(timeout=0.01)
    panel.stop()
    assert panel.status == "running"
    slow_session.go.set()
    panel.wait(10)
    assert panel.status == "stopped" and len(slow_session.made) == 1
    assert panel.train(wait=False) is None and len(slow_session.made) == 2
    panel.stop()
    panel.wait(10)


# ---- controls -------------------------------------------------------------------------------


def test_controls_start_at_the_config_and_keep_what_has_no_control(panel):
    config = panel.config
    assert isinstance(config, VBLoRAConfig)
    assert (config.r, config.num_vectors, config.vector_length, config.topk) == (2, 16, 16, 2)
    assert set(config.target_modules) == {"q_proj", "fc1"}
    assert config.vblora_dropout == 0.25


def test_controls_become_the_session(panel, session_class):
    controls = panel.controls
    controls.r.value = 3
    controls.num_vectors.value = 64
    controls.topk.value = 4
    controls.preset.value = "attention"
    controls.vector_length.value = 8
    controls.bank_rate.value = 1e-2
    controls.logits_rate.value = 1e-1
    controls.steps.value = 30
    controls.batch_size.value = 4
    controls.seed.value = 7
    panel.train(wait=True)
    given = session_class.made[0].given
    config = given.config
    assert (config.r, config.num_vectors, config.vector_length, config.topk) == (3, 64, 8, 4)
    assert set(config.target_modules) == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert (given.steps, given.batch_size, given.seed) == (30, 4, 7)
    rates = given.learning_rates
    assert (rates.bank, rates.logits) == pytest.approx((1e-2, 1e-1))
    assert rates.other == LearningRates().other
    assert given.base is panel._base and given.task is panel._task
    assert given.options == {"sample_every": 50}, "a run that is stopped has texts to show"


def test_presets_and_modules_follow_each_other(panel):
    controls = panel.controls
    assert controls.preset.value == "own choice"
    controls.preset.value = "query and value"
    assert set(controls.targets.value) == {"q_proj", "v_proj"}
    controls.targets.value = ("fc2",)
    assert controls.preset.value == "own choice"
    controls.targets.value = tuple(controls.targets.options)
    assert controls.preset.value == "all linear"


def test_vector_length_stays_if_it_divides_and_else_falls_to_the_next_that_does(panel):
    controls = panel.controls
    assert list(controls.vector_length.options) == [4, 8, 16, 32]
    controls.vector_length.value = 8
    controls.preset.value = "all linear"
    assert controls.vector_length.value == 8


def test_a_config_too_long_for_the_model_starts_at_the_longest_that_fits(make_panel):
    panel = make_panel(config=VBLoRAConfig(target_modules=["q_proj"]))  # vector_length 256
    assert panel.config.vector_length == 32


def test_the_header_names_the_base_without_its_folder(make_panel, opt, tmp_path):
    assert "base model OPTForCausalLM, task a-task" in shown(make_panel())
    (tmp_path / "opt-tiny").mkdir()
    opt.name_or_path = str(tmp_path / "opt-tiny")
    assert "base model opt-tiny, task a-task" in shown(make_panel())


# ---- what is done before the first step -------------------------------------------------------


def test_the_header_says_what_a_person_waits_for(panel, monkeypatch):
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr("vblora_lab.widgets.header.time.monotonic", lambda: now.time)
    told = []
    panel._header.observe(lambda change: told.append(change.new), "value")
    for done in range(5):  # as fast as they come: the first one alone is shown
        panel._listen(Working(0, "measuring the loss", done, 64))
    assert len(told) == 1 and "measuring the loss, 0 of 64 examples" in told[0]
    now.time += 0.3
    panel._listen(Working(0, "measuring the loss", 48, 64))
    panel._listen(Working(0, "<i>writing</i>", 7, unit="tokens"))  # something else, at once
    assert "48 of 64" in told[1] and "&lt;i&gt;writing&lt;/i&gt;, 7 tokens" in told[2]
    panel._listen(Stepped(1, 40, 4.0, {}, 1.0, 1.0, 39.0, 1.0))
    assert "writing" not in panel._header.value and len(told) == 4


# ---- a run ----------------------------------------------------------------------------------


def test_a_run_is_shown_to_its_last_event(panel, session_class):
    assert panel.status == "ready" and panel.trace is None and "ready" in shown(panel)
    trace = panel.train(wait=True)
    assert trace is session_class.made[0].trace
    assert panel.status == "completed"
    np.testing.assert_allclose(losses(panel), 4 / np.arange(1, 41), rtol=1e-6)
    assert np.frombuffer(panel.loss_chart.evaluations, "<f4").tolist() == [0, 4.25, 40, 1.5]
    assert panel.heatmap.selection.num_vectors == 16
    assert panel._progress.value == panel._progress.max == 40
    text = shown(panel)
    for part in ("✓ completed", "0.100", "1.500", "1,234", "6.5 steps/s", "4 s in all", "4,321",
                 "1.5 KiB", "LoRA: 62.5 KiB", "step 40 of 40", "After 40 steps",
                 "✕ missing food[&lt;Thai&gt;]", "The &lt;b&gt;pub"):  # fmt: skip
        assert part in text, part


def test_the_last_selection_is_the_one_that_stays(panel, monkeypatch):
    told = []
    listen = panel._listen
    monkeypatch.setattr(panel, "_listen", lambda event: (told.append(event), listen(event)))
    panel.train(wait=True)
    last = [event for event in told if hasattr(event, "selection")][-1]
    assert panel.heatmap.selection is last.selection


def test_changes_are_marked_against_the_first_selection_of_the_run(panel, monkeypatch):
    told = []
    listen = panel._listen
    monkeypatch.setattr(panel, "_listen", lambda event: (told.append(event), listen(event)))
    for _ in range(2):
        told.clear()
        panel.train(wait=True)
        first = next(event for event in told if hasattr(event, "selection")).selection
        start = np.frombuffer(panel.heatmap.start_weights, "<f4")
        np.testing.assert_array_equal(start, first.weights.ravel())


def test_many_events_are_few_updates(panel, monkeypatch):
    updates = []
    update = BankHeatmap.update
    monkeypatch.setattr(BankHeatmap, "update", lambda self, s: (updates.append(s), update(self, s)))
    clock = iter(np.arange(0.0, 1000.0, 0.01))  # a hundred looks at the clock each second
    monkeypatch.setattr("vblora_lab.widgets.run_panel.time.monotonic", lambda: float(next(clock)))
    panel.controls.steps.value = 400
    panel.train(wait=True)
    assert len(losses(panel)) == 400
    # 800 events and their looks at the clock take 8 to 9 seconds of it.
    assert 8 / SHOW_EVERY - 2 <= len(updates) <= 9 / SHOW_EVERY + 2


def test_drivers_choose_the_thread(make_panel, session_class):
    make_panel().train(wait=True)
    make_panel(driver="foreground").train()
    background, foreground = (session.thread for session in session_class.made)
    assert background is not threading.current_thread()
    assert foreground is threading.current_thread()


def test_the_front_end_chooses_the_driver(make_panel, monkeypatch):
    monkeypatch.delenv("VBLORA_LAB_DRIVER")
    monkeypatch.setattr(
        "vblora_lab.widgets.run_panel.detect", lambda: SimpleNamespace(driver="thread")
    )
    assert make_panel().driver == "thread"
    monkeypatch.undo()
    monkeypatch.delenv("VBLORA_LAB_DRIVER", raising=False)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    assert make_panel().driver == "foreground"
    assert make_panel(driver="thread").driver == "thread"


def test_an_unknown_driver_is_refused(make_panel):
    with pytest.raises(ValueError, match=r"'gpu'.*'thread', 'foreground'"):
        make_panel(driver="gpu")


def test_pause_step_and_resume_by_button(panel, session_class):
    session_class.pauses = True
    assert panel._pause_button.disabled and panel._step_button.disabled
    panel.train()
    session = session_class.made[0]
    assert session.held.wait(10)
    assert panel.status == "paused" and "paused" in shown(panel)
    assert len(losses(panel)) == 2, "all that was told is on the screen"
    assert "1 min 15 s" in shown(panel)
    assert panel._pause_button.description == "Resume" and not panel._step_button.disabled
    assert panel._train_button.disabled and panel.controls.r.disabled
    with pytest.raises(SessionError, match="A run is going on"):
        panel.train()
    panel._step_button.click()
    panel._pause_button.click()
    panel.wait()
    assert session.asked == ["step", "resume"]
    assert panel.status == "completed" and panel._pause_button.description == "Pause"
    assert panel._pause_button.disabled and panel._step_button.disabled


def test_rates_are_changed_while_a_run_goes_on(panel, session_class):
    session_class.pauses = True
    panel.controls.bank_rate.value = 1e-3  # before: a setting
    panel.train()
    session = session_class.made[0]
    assert session.held.wait(10)
    assert not panel.controls.bank_rate.disabled
    panel.controls.bank_rate.value = 1e-4
    panel.resume()
    panel.wait()
    panel.controls.bank_rate.value = 1e-2  # after: a setting again
    (rates,) = [asked for asked in session.asked if isinstance(asked, tuple)]
    assert rates == pytest.approx((1e-4, panel.controls.logits_rate.value))


def test_without_a_run_there_is_nothing_to_steer(panel):
    for wish in (panel.pause, panel.step, panel.resume):
        with pytest.raises(SessionError, match="There is no run yet"):
            wish()


def test_while_a_run_goes_on_the_settings_rest_and_stop_ends_it(panel, session_class):
    session_class.hold = True
    assert panel.train() is None
    session = session_class.made[0]
    assert session.held.wait(10)
    assert panel.status == "running"
    assert panel.controls.r.disabled and panel._train_button.disabled
    assert not panel._stop_button.disabled
    with pytest.raises(SessionError, match="A run is going on"):
        panel.train()
    assert len(session_class.made) == 1

    panel._stop_button.click()
    assert "▶ stopping" in shown(panel) or panel.status == "stopped"
    panel.wait()
    assert panel.status == "stopped" and "■ stopped" in shown(panel)
    assert not panel.controls.r.disabled and not panel._train_button.disabled
    assert panel._stop_button.disabled
    assert len(losses(panel)) == 2


def test_training_again_starts_from_an_empty_screen(panel, session_class):
    session_class.hold = True
    panel.train()
    panel.stop()
    panel.wait()
    session_class.hold = False
    panel.controls.steps.value = 20
    panel._train_button.click()
    panel.wait()
    first, second = session_class.made
    assert panel.session is second is not first
    assert panel.status == "completed"
    assert len(losses(panel)) == 20
    assert panel._progress.max == 20
    assert np.frombuffer(panel.loss_chart.evaluations, "<f4").tolist() == [0, 4.25, 20, 1.5]


# ---- what goes wrong ------------------------------------------------------------------------


def test_a_bad_combination_is_a_sentence_and_starts_nothing(panel, session_class):
    panel.controls.num_vectors.value, panel.controls.topk.value = 4, 8
    panel._train_button.click()
    assert session_class.made == [] and panel.session is None
    assert "topk=8" in panel._message.value and "may be at most 4" in panel._message.value
    assert panel.status == "ready" and not panel._train_button.disabled
    with pytest.raises(ConfigError, match="topk=8"):
        panel.train()

    panel.controls.topk.value = 2
    panel.train(wait=True)
    assert panel._message.value == ""


def test_what_does_not_fit_the_model_leaves_the_last_run_on_screen(panel, monkeypatch):
    panel.train(wait=True)
    before = panel.session

    def refuse(*_args, **_options):
        raise TargetError("vector_length=16 does not divide fc9")

    monkeypatch.setattr("vblora_lab.widgets.live.TrainingSession", refuse)
    panel._train_button.click()
    assert "does not divide fc9" in panel._message.value
    assert panel.session is before and panel.status == "completed"
    assert len(losses(panel)) == 40


def test_a_second_click_while_the_session_is_made_makes_no_second_one(panel, session_class):
    class Slow(session_class):
        def __init__(self, *args, **options):
            with pytest.raises(SessionError):
                panel.train()
            assert panel._train_button.disabled and panel._stop_button.disabled
            super().__init__(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vblora_lab.widgets.live.TrainingSession", Slow)
        panel.train(wait=True)
    assert len(session_class.made) == 1
    assert panel.status == "completed"


def test_a_failed_run_shows_its_error(panel, session_class):
    session_class.fail = True
    with pytest.raises(RuntimeError, match="the loss is"):
        panel.train(wait=True)
    assert panel.status == "failed" and "✕ failed" in shown(panel)
    assert "RuntimeError: the loss is &lt;nan&gt;" in panel._message.value
    assert not panel._train_button.disabled


def test_an_interrupt_while_waiting_stops_the_run(panel, session_class, monkeypatch):
    session_class.hold = True
    panel.train()
    session = session_class.made[0]
    wait, calls = session.wait, []

    def interrupted(timeout=None):
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(timeout)

    monkeypatch.setattr(session, "wait", interrupted)
    assert panel.wait() is session.trace
    assert panel.status == "stopped"


def test_the_panel_prints_nothing_and_needs_no_pyplot(panel, capfd):
    panel.train(wait=True)
    panel.stop()
    assert capfd.readouterr().out == ""
    assert "matplotlib.pyplot" not in sys.modules


# ---- what stays -----------------------------------------------------------------------------


def test_the_figure_is_of_the_run_and_not_before_it(panel):
    with pytest.raises(SessionError, match="no run yet"):
        panel.figure()
    assert "image/png" in panel._repr_mimebundle_()[0]  # of what would be trained
    panel.train(wait=True)
    line = panel.figure().axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), 4 / np.arange(1, 41))
