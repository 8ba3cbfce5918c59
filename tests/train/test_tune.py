"""A search keeps its budget, can be interrupted anywhere, and says what it came to."""

import dataclasses
import importlib.util
import json
import math
import signal
import subprocess
import sys

import pytest

pytest.importorskip("optuna")

from vblora_lab import Tuned, from_pretrained, tune
from vblora_lab.bases import share_weights
from vblora_lab.errors import ConfigError, DataError, MissingExtraError, SessionError
from vblora_lab.runs import Evaluated, Runs, Started, Stepped
from vblora_lab.train import tune_trial
from vblora_lab.train.optimizer import LearningRates

BUDGET = 40_000
SMALL = {
    "steps": 3, "batch_size": 2, "eval_examples": 2, "eval_every": 1, "prune_after": 1,
    "bytes": BUDGET, "trials": 4, "methods": ("vblora", "lora"),
}  # fmt: skip


def silent(_: str) -> None:
    """Nobody wants to hear it."""


def table(tuned: Tuned) -> list:
    return [
        (t.name, t.config.to_dict(), t.learning_rates, t.bytes, str(t.last_loss), t.state)
        for t in tuned.trials
    ]


@pytest.fixture(scope="module")
def searched(base, task, tmp_path_factory):
    """A search that nothing interrupts: its result, folder, and what was told."""
    out, told = tmp_path_factory.mktemp("tune") / "search", []
    return tune(base, task, out=out, tell=told.append, **SMALL), out, told


def test_files_keep_to_the_budget(searched):
    tuned, out, _ = searched
    assert [trial.name for trial in tuned.trials] == [f"trial-00{i}" for i in range(4)]
    assert list(Runs(out)) == [trial.name for trial in tuned.trials]
    for trial in tuned.trials:
        written = (trial.adapter / "adapter_model.safetensors").stat().st_size
        assert 0.9 * trial.bytes < written <= trial.bytes <= BUDGET


def test_the_best_is_the_front_s_last_and_its_adapter_loads(searched, base):
    tuned, _, _ = searched
    done = [trial for trial in tuned.trials if trial.state == "completed"]
    assert tuned.best.loss == min(trial.loss for trial in done)
    beaten = [
        t for t in done
        if any(o.bytes <= t.bytes and o.loss <= t.loss and o != t for o in done)
    ]  # fmt: skip
    assert [t.name for t in tuned.front] == [
        t.name for t in sorted(done, key=lambda t: t.bytes) if t not in beaten
    ]
    vblora = next(trial for trial in tuned.trials if trial.method == "vblora")
    from_pretrained(share_weights(base.model), vblora.adapter)


def test_losses_are_those_of_the_runs(searched):
    tuned, out, _ = searched
    for trial in tuned.trials:
        trace = Runs(out)[trial.name].trace
        assert trial.last_loss == pytest.approx(float(trace.eval_losses[-1]))
        assert (trace.eval_steps[-1] == 3) == (trial.state == "completed")
        assert math.isnan(trial.loss) == (trial.state != "completed")


def test_it_says_first_what_it_will_cost_and_then_how_each_ended(searched):
    _, _, told = searched
    assert told[0].startswith("4 trials of 3 steps: a step takes ")
    assert "at its peak; by plan, " in told[0]
    assert [line.partition(":")[0] for line in told[1:]] == [f"trial-00{i}" for i in range(4)]


def test_what_is_done_is_not_trained_again_and_more_trials_go_on(searched, base, task, monkeypatch):
    tuned, out, _ = searched

    def never(*_):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(tune_trial.Conditions, "session", never)
        again = tune(base, task, out=out, tell=silent, **SMALL)
    assert table(again) == table(tuned)


@pytest.mark.parametrize("at", ["a step", "the measuring"])
def test_an_interrupted_search_ends_as_an_unbroken_one(searched, base, task, tmp_path, at):
    begun, told = [], []

    def interrupt(event):
        begun.append(1) if isinstance(event, Started) else None
        if len(begun) == 3 and isinstance(event, Stepped) and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "search"
    with pytest.raises(KeyboardInterrupt):
        tune(base, task, out=out, tell=told.append, listeners=[interrupt], **SMALL)
    assert told[-1] == f"Interrupted after 2 trials; the same call with out={str(out)!r} goes on."
    if at == "the measuring":
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("vblora_lab.train.tune.measure_cost", _raise_interrupt)
            tune(base, task, out=out, tell=silent, **SMALL)
    tuned = tune(base, task, out=out, tell=silent, **SMALL)
    assert table(tuned) == table(searched[0])


def _raise_interrupt(*_):
    raise KeyboardInterrupt


def test_trials_that_are_behind_are_cut_short(base, task, monkeypatch):
    """With a rate of 0 for all but the first trial, later ones fall behind it at once."""
    rates = iter([LearningRates(1e-2, 1e-1, 1e-2)] * 2 + [LearningRates(0, 0, 0)] * 9)
    session = tune_trial.Conditions.session

    def with_other_rates(self, candidate, *args, **options):
        return session(self, candidate, *args, **{"learning_rates": next(rates), **options})

    monkeypatch.setattr(tune_trial.Conditions, "session", with_other_rates)
    events = []
    small = {**SMALL, "methods": ("lora",), "steps": 6, "eval_every": 3, "trials": 3}
    tuned = tune(base, task, tell=silent, listeners=[events.append], **small)
    assert [trial.state for trial in tuned.trials] == ["completed", "cut short", "cut short"]
    assert [t.name for t in tuned.front] == ["trial-000"]
    assert all(math.isnan(t.loss) and t.last_loss > tuned.best.loss for t in tuned.trials[1:])
    assert sum(isinstance(event, Evaluated) and event.step == 6 for event in events) == 1
    assert "cut short" in str(tuned) and tuned.trials[0].folder is None


def test_a_trial_that_diverges_is_noted_and_the_search_goes_on(base, task, monkeypatch):
    session, made = tune_trial.Conditions.session, []

    def diverging_first(self, candidate, *args, **options):
        made.append(candidate)
        if len(made) == 2:  # the first measures the cost
            options["learning_rates"] = LearningRates(1e30, 1e30, 1e30)
        return session(self, candidate, *args, **options)

    monkeypatch.setattr(tune_trial.Conditions, "session", diverging_first)
    small = {**SMALL, "trials": 2, "methods": ("lora",), "prune_after": 2}
    tuned = tune(base, task, tell=silent, **small)
    assert [t.state.partition(":")[0] for t in tuned.trials] == ["failed", "completed"]
    assert math.isnan(tuned.trials[0].loss) and tuned.best == tuned.trials[1]
    made.clear()
    with pytest.raises(SessionError, match="no trial ran to its end; the last, trial-000, failed"):
        tune(base, task, tell=silent, **{**small, "trials": 1})


def test_other_arguments_are_refused_by_name(searched, base, task):
    _, out, _ = searched
    before = (out / "tune.json").read_bytes()
    for change in ({"bytes": 50_000}, {"steps": 4}, {"seed": 1}, {"methods": ("lora",)}):
        (name,) = change
        with pytest.raises(ConfigError, match=f"^{name}=.*was begun with") as caught:
            tune(base, task, out=out, tell=silent, **(SMALL | change))
        assert caught.value.field == name
    assert (out / "tune.json").read_bytes() == before


def test_what_can_not_be_is_refused_before_anything_is_written(base, task, tmp_path):
    out = tmp_path / "search"
    for change, words in (
        ({"bytes": 1000}, "no adapter is so small; the smallest here takes"),
        ({"trials": 0}, "trials=0"),
        ({"eval_examples": 0}, "eval_examples=0"),
        ({"memory": 10}, "memory=10"),
        ({"methods": "vblora"}, "methods"),
    ):
        with pytest.raises(ConfigError, match=words):
            tune(base, task, out=out, tell=silent, **(SMALL | change))
    assert not out.exists()


def test_folders_that_no_search_wrote_are_left_alone(base, task, tmp_path):
    (tmp_path / "trial-000").mkdir()
    with pytest.raises(SessionError, match=r"holds trial-000, but no tune\.json"):
        tune(base, task, out=tmp_path, tell=silent, **SMALL)
    bare = dataclasses.replace(task, validation=())
    with pytest.raises(DataError, match="no validation examples"):
        tune(base, bare, tell=silent, **SMALL)


def test_without_optuna_it_says_what_to_install(base, task, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name)
    )
    with pytest.raises(MissingExtraError, match=r"vblora-lab\[tune\]"):
        tune(base, task, tell=silent)


def test_tables_in_text_html_and_csv(searched):
    tuned, _, _ = searched
    text, page, rows = str(tuned), tuned._repr_html_(), tuned.to_csv().splitlines()
    assert text.startswith("mini-opt · restaurants · 3 steps") and f"{BUDGET:,} bytes" in text
    assert len(rows) == 5
    for trial in tuned.trials:
        for shown in (trial.name, f"{trial.bytes:,}", trial.targets):
            assert shown in text and shown in page


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vblora", pytest.param("lora", marks=pytest.mark.long)])
def test_the_code_trains_the_best_one_again(tmp_path, method):
    """On a task that the code can name; in a second process, to the same loss."""
    small = {**SMALL, "trials": 1, "methods": (method,)}
    tuned = tune("mini-opt", "restaurants", tell=silent, **small)
    (tmp_path / "best.py").write_text(tuned.code)
    done = subprocess.run(
        [sys.executable, "best.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    loss = json.loads(done.stdout.removeprefix("validation loss ").split()[0])
    assert loss == pytest.approx(tuned.best.loss, abs=1e-3)
    assert (tmp_path / "best" / "adapter" / "adapter_config.json").exists()


@pytest.mark.long
def test_two_processes_share_a_search(tmp_path):
    """Together they train as many trials as one would, and each reports all of them."""
    program = tmp_path / "search.py"
    small = {**SMALL, "trials": 5, "prune_after": 9}
    program.write_text(
        "import sys\nfrom vblora_lab import tune\n"
        f"tuned = tune('mini-opt', 'restaurants', out='search', **{small!r})\n"
        "print(*[trial.state for trial in tuned.trials], file=sys.stderr)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, program.name], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    trained = []
    for process in both:
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert errors.splitlines()[-1] == " ".join(["completed"] * 5)
        trained += [line.partition(":")[0] for line in said.splitlines() if ": loss" in line]
    assert sorted(trained) == [f"trial-00{i}" for i in range(5)]
