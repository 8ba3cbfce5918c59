"""LiveTuning begins, stops and shows a search, and opens what is chosen."""

import threading
from typing import ClassVar

import pytest
from tried import SOME, tried, tuned

from vblora_lab import ConfigExplorer, FrontChart, LiveTuning, TrainingStudio, load_base
from vblora_lab.errors import ConfigError, DataError, SessionError
from vblora_lab.train.one_at_a_time import begin, end


class ScriptedSearch:
    """Ends trials as `SOME` says, each after it was let go on; no model is trained."""

    made: ClassVar[list] = []

    def __init__(self, base, task, *, tell, listeners, **settings):
        if settings.get("eval_examples") == 0:
            raise DataError("a task without examples")
        self.settings, self._tell, self._trials = settings, tell, ()
        self._go_on, self._stopping = threading.Semaphore(0), threading.Event()
        self.made.append(self)

    def run(self, trials):
        for trial in SOME[:trials]:
            self._go_on.acquire()
            if self.stopped:
                return self.result()
            if isinstance(self.failure, BaseException):
                raise self.failure
            self._trials += (trial,)
            self._tell(f"{trial.name}: <b>{trial.state}</b>")
        return self.result()

    failure = None

    def let(self, trials=1):
        self._go_on.release(trials)

    def stop(self):
        self._stopping.set()
        self._go_on.release()

    @property
    def stopped(self):
        return self._stopping.is_set()

    def result(self):
        return tuned(*self._trials, budget=self.settings["bytes"])


@pytest.fixture
def searches(monkeypatch):
    fresh = type("FreshSearch", (ScriptedSearch,), {"made": []})
    monkeypatch.setattr("vblora_lab.widgets.live_tuning.Search", fresh)
    return fresh


@pytest.fixture(scope="module")
def base():
    return load_base("mini-opt")


@pytest.fixture
def panel(base, searches):
    return LiveTuning(base, trials=6, steps=3, batch_size=2, bytes=50_000)


def searched(panel, searches):
    panel.search()
    searches.made[-1].let(6)
    panel.wait(60)
    return panel


def test_the_chart_has_every_trial_that_ended_and_marks_the_front(panel, searches):
    searched(panel, searches)
    assert panel.status == "completed"
    shown = {trial["name"]: trial for trial in panel.chart.trials}
    assert list(shown) == [trial.name for trial in SOME]
    places = {name: trial["place"] for name, trial in shown.items() if trial["place"]}
    assert places == {"trial-000": "front", "trial-001": "front", "trial-003": "best"}
    assert shown["trial-004"]["loss"] is None and shown["trial-004"]["last_loss"] == 9.0
    assert shown["trial-005"]["last_loss"] is None  # no NaN: it isn't JSON
    assert panel.chart.budget == 50_000 and "6 of 6" in panel._progress_text.value
    assert "&lt;b&gt;completed" in panel._told.value


def test_settings_reach_the_search_and_rest_while_it_goes_on(panel, searches):
    panel.controls.lora.value, panel.controls.out.value = True, " here "
    panel.search()
    search = searches.made[0]
    assert search.settings == {
        "bytes": 50_000, "steps": 3, "batch_size": 2, "seed": 0, "methods": ("vblora", "lora"),
        "out": "here",
    }  # fmt: skip
    assert panel.status == "searching" and panel.controls.bytes.disabled
    with pytest.raises(SessionError, match="going on"):
        panel.search()
    assert len(searches.made) == 1
    with pytest.raises(TimeoutError, match="still goes on"):
        panel.wait(0.01)
    search.let(2)
    panel._stop_button.click()
    panel.wait(60)
    assert panel.status == "stopped" and not panel.controls.bytes.disabled
    assert len(panel.tuned.trials) <= 2


def test_a_refused_search_leaves_the_panel_as_it_was(base, searches):
    panel = LiveTuning(base, eval_examples=0)
    with pytest.raises(DataError):
        panel.search()
    assert panel.status == "ready" and "without examples" in panel._message.value
    assert panel.tuned is None and not panel._search_button.disabled
    begin()  # something else trains
    try:
        with pytest.raises(SessionError):
            panel.search()
    finally:
        end()
    assert panel.status == "ready"
    with pytest.raises(ConfigError, match="driver='other'"):
        LiveTuning(base, driver="other")


def test_what_makes_a_search_fail_is_shown_and_raised(panel, searches):
    searches.failure = DataError("no <examples>")
    panel.search()
    searches.made[0].let()
    with pytest.raises(DataError):
        panel.wait(60)
    assert panel.status == "failed" and "no &lt;examples&gt;" in panel._message.value


def test_a_chosen_trial_opens_in_the_explorer_and_in_the_studio(panel, searches):
    assert panel._explorer_button.disabled
    with pytest.raises(SessionError, match="click its dot"):
        panel.open_explorer()
    searched(panel, searches)
    panel.chart.chosen = "trial-003"
    assert not panel._explorer_button.disabled and "num_vectors=8" in panel._choice.value
    explorer = panel.open_explorer()
    assert isinstance(explorer, ConfigExplorer) and panel._place.children == (explorer,)
    assert explorer.config.to_dict() == SOME[3].config.to_dict()
    panel._studio_button.click()
    assert isinstance(panel.opened, TrainingStudio) and panel._place.children == (panel.opened,)
    session = panel.opened.session
    assert session.learning_rates == SOME[3].learning_rates and session.steps == 3
    panel.chart.chosen = "trial-001"  # LoRA, which neither of them takes
    assert panel._studio_button.disabled and "LoraConfig" in panel._choice.value


def test_a_picture_stays_once_a_trial_has_ended():
    chart = FrontChart(50_000)
    assert "image/png" not in chart._repr_mimebundle_()[0]
    chart.show(tuned(tried(0, 9, 1.0, state="cut short")))
    assert chart.figure() is None
    chart.show(tuned(*SOME))
    chart.chosen = "trial-000"
    assert "image/png" in chart._repr_mimebundle_()[0]
    chart.show(tuned(*SOME[1:]))  # another search, without it
    assert chart.chosen == ""


def test_a_search_of_its_own_kind_stops_after_a_step(base):
    pytest.importorskip("optuna")
    small = {"eval_examples": 1, "prune_after": 1, "eval_every": 0}
    panel = LiveTuning(base, trials=9, steps=50, batch_size=1, bytes=40_000, **small)
    stop = threading.Event()

    def after_a_step(change):
        if change["new"] > 0 and not stop.is_set():
            stop.set()
            panel.stop()

    panel._progress.observe(after_a_step, "value")
    found = panel.search(wait=True)
    assert panel.status == "stopped" and stop.is_set() and found.trials == ()
    assert "nothing was kept" in panel._told.value
