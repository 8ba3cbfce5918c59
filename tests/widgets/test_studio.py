"""The studio around real sessions: what they say is on the screen, and what it writes is theirs."""

from __future__ import annotations

import base64
import subprocess
import sys
import time

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

from vblora_lab.bases import Base, load_base
from vblora_lab.data import Task, load_task
from vblora_lab.errors import ConfigError, SessionError
from vblora_lab.plots import smooth
from vblora_lab.train import LearningRates, Runs, Trace, TrainingSession
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.widgets import TrainingStudio

pytestmark = pytest.mark.slow

STEPS = 5


@pytest.fixture(scope="module")
def base():
    return load_base("mini-opt", device="cpu")


@pytest.fixture(scope="module")
def task():
    return load_task("restaurants")


@pytest.fixture
def make_session(base, task):
    def make(**options):
        config = VBLoRAConfig(
            r=2, num_vectors=16, vector_length=16, target_modules=["q_proj", "v_proj"]
        )
        options = {
            "steps": STEPS, "batch_size": 2, "learning_rates": LearningRates(1e-2, 1e-1),
            "seed": 3, "eval_examples": 2, "sample_count": 1, **options,
        }  # fmt: skip
        return TrainingSession(options.pop("base", base), config, task, **options)

    return make


@pytest.fixture
def make_studio(make_session, tmp_path):
    def make(session=None, **options):
        return TrainingStudio(
            session or make_session(), **{"folder": tmp_path / "taken", **options}
        )

    return make


def points(chart):
    """(n, 3): step, loss, mean."""
    return np.frombuffer(chart.closed + chart.opened, "<f4").reshape(-1, 3)


def shown(studio):
    parts = (
        studio._header, studio._message, studio._tiles, studio._progress_text, studio._samples,
        studio._written,
    )  # fmt: skip
    return "\n".join(part.value for part in parts)


# ---- the run --------------------------------------------------------------------------------


def test_a_run_is_shown_as_its_trace_has_it(make_studio):
    studio = make_studio()
    assert studio.status == "ready" and "○ ready" in shown(studio)
    trace = studio.train(wait=True)
    assert studio.status == "completed" and studio._train_button.disabled
    drawn = points(studio.loss_chart)
    np.testing.assert_array_equal(drawn[:, 0], trace.steps)
    np.testing.assert_allclose(drawn[:, 1], trace.losses, rtol=1e-6)
    assert studio._progress.value == studio._progress.max == STEPS
    np.testing.assert_array_equal(studio.heatmap.selection.indices, trace.selections[-1][1].indices)
    text = shown(studio)
    last = [event for event in trace.events if hasattr(event, "eta_seconds")][-1]
    for part in (
        "Training studio", "✓ completed", f"{trace.losses[-1]:.3f}",
        f"{trace.eval_losses[-1]:.3f}", f"{trace.trained_parameters:,}",
        f"{last.tokens_per_second:,.0f}", f"step {STEPS} of {STEPS}",
        f"After {STEPS} steps", "2 of 16 each",
    ):  # fmt: skip
        assert part in text, part
    assert last.peak_memory_bytes > 0
    assert ("✕ " in text) == any(
        s.slot_errors for s in (*trace.samples_before, *trace.samples_after)
    )


def test_a_session_trains_once_and_the_panel_says_so(make_studio):
    studio = make_studio()
    studio.train(wait=True)
    with pytest.raises(SessionError, match="trains once"):
        studio.train()
    assert studio.status == "completed"


def test_a_studio_opened_late_shows_all_and_each_event_once(make_session, make_studio):
    session = make_session(steps=12)
    early = make_studio(session)
    session.start()  # not by the button
    session.pause()
    wait_until(lambda: early.status == "paused")
    late = make_studio(session)
    assert late.status == "paused" and not late._step_button.disabled
    np.testing.assert_array_equal(points(late.loss_chart), points(early.loss_chart))
    late.resume()
    late.wait(60)
    assert early.status == late.status == "completed"
    after = make_studio(session)
    for studio in (early, late, after):
        np.testing.assert_array_equal(points(studio.loss_chart)[:, 0], np.arange(1, 13))
        assert studio._samples.value == early._samples.value


def test_studios_opened_while_steps_are_taken_miss_and_double_nothing(make_session, make_studio):
    session = make_session(steps=40)
    session.start()
    studios = [make_studio(session) for _ in range(6)]
    trace = session.wait(120)
    for studio in studios:
        np.testing.assert_array_equal(points(studio.loss_chart)[:, 0], trace.steps)


def test_the_foreground_returns_the_trace(make_studio):
    studio = make_studio(driver="foreground")
    assert studio.train().reason == "completed"
    assert studio.status == "completed"


def test_buttons_pause_step_and_stop_and_sliders_change_rates(make_session, make_studio):
    studio = make_studio(make_session(steps=500))
    session = studio.session
    assert studio.bank_rate.disabled
    studio._train_button.click()
    studio._pause_button.click()
    wait_until(lambda: studio.status == "paused")
    steps = len(session.trace.steps)
    studio._step_button.click()
    wait_until(lambda: len(session.trace.steps) == steps + 1 and studio.status == "paused")
    assert len(points(studio.loss_chart)) == steps + 1
    assert not studio.bank_rate.disabled
    studio.bank_rate.value = 1e-4
    assert session.learning_rates == LearningRates(1e-4, 1e-1)
    session.set_learning_rates(LearningRates(1e-3, 0))  # in a cell: its slider can't say that
    studio.bank_rate.value = 1e-5
    assert session.learning_rates == LearningRates(1e-5, 0)
    studio._stop_button.click()
    studio.wait(60)
    assert studio.status == "stopped" and "■ stopped" in shown(studio)
    assert studio.bank_rate.disabled


# ---- curves ---------------------------------------------------------------------------------


@pytest.fixture
def runs(make_session, tmp_path):
    kept = Runs(tmp_path / "runs")
    for name, seed in (("first", 1), ("<b>second", 2)):
        session = make_session(seed=seed, sample_count=0, eval_examples=0)
        session.run()
        if name == "first":
            kept.keep(name, session)
        else:
            traces = {name: session.trace}
    return kept, traces


def test_runs_of_a_folder_and_traces_are_laid_under_the_curve(make_studio, runs):
    for given in runs:
        studio = make_studio(runs=given)
        (name,) = given
        studio.overlay.value = (name,)
        trace = given[name].trace if isinstance(given, Runs) else given[name]
        chart = studio.loss_chart
        assert chart.other_names == [name] and chart.other_lengths == [STEPS]
        drawn = np.frombuffer(chart.other_points, "<f4").reshape(-1, 2)
        np.testing.assert_array_equal(drawn[:, 0], trace.steps)
        means = [trace.losses[max(0, i - 9) : i + 1].mean() for i in range(STEPS)]
        np.testing.assert_allclose(drawn[:, 1], means, rtol=1e-5)
        studio.train(wait=True)
        lines = {line.get_label(): line for line in studio.figure().axes[0].lines}
        np.testing.assert_array_equal(lines["this run"].get_xdata(), studio.trace.steps)
        np.testing.assert_allclose(lines[name].get_ydata(), means, rtol=1e-5)
        studio.overlay.value = ()
        assert chart.other_names == [] and chart.other_points == b""


def test_a_run_that_cannot_be_read_is_a_sentence(make_studio, runs):
    kept, _ = runs
    studio = make_studio(runs=kept)
    (kept.folder / "first" / "run.trace").write_text("no trace")
    studio.overlay.value = ("first",)
    assert "✕" in studio._message.value and "run.trace" in studio._message.value
    assert studio.loss_chart.other_names == []
    studio.overlay.value = ()
    assert studio._message.value == ""


def test_smoothing_is_chosen(make_studio):
    studio = make_studio()
    studio.train(wait=True)
    studio.smoothing.value = 2
    losses = studio.trace.losses
    two = np.concatenate([losses[:1], (losses[1:] + losses[:-1]) / 2])
    np.testing.assert_allclose(points(studio.loss_chart)[:, 2], two, rtol=1e-6)
    axes = studio.figure().axes[0]
    assert axes.get_xlabel() == "training step" and "nats per token" in axes.get_ylabel()
    (mean,) = [line for line in axes.lines if line.get_label() == "mean of the last 2"]
    np.testing.assert_allclose(mean.get_ydata(), smooth(losses, 2))


# ---- what it writes -------------------------------------------------------------------------


def test_exports_are_the_session_s_own(make_studio, tmp_path, base):
    studio = make_studio()
    studio.train(wait=True)
    for button in studio._export_buttons.values():
        button.click()
    taken = tmp_path / "taken"
    for name in ("adapter", "lora", "run.trace", "loss.png", "train.py"):
        assert (taken / name).exists()
        assert f": {taken / name}</li>" in studio._written.value
    assert "✕" not in studio._written.value

    # Stock PEFT reads both adapters, and they compute what the session's model computes.
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted = studio.session.model(input_ids=tokens).logits
        for folder in ("adapter", "lora"):
            fresh = load_base("mini-opt", device="cpu").model
            plain = fresh(input_ids=tokens).logits
            got = peft.PeftModel.from_pretrained(fresh, taken / folder)(input_ids=tokens).logits
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
            assert not torch.equal(got, plain)
    np.testing.assert_array_equal(Trace.load(taken / "run.trace").losses, studio.trace.losses)
    assert list(Runs(tmp_path)) == ["taken"], "an exported trace is one to lay under other runs"
    assert (taken / "loss.png").read_bytes().startswith(b"\x89PNG")

    # The code trains the same adapter in a second process, bit for bit.
    done = subprocess.run(
        [sys.executable, taken / "train.py"], cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (taken, tmp_path)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_are_not_exported_while_they_change(make_session, make_studio, tmp_path):
    studio = make_studio(make_session(steps=500))
    studio.train()
    for what in ("adapter", "LoRA"):
        studio._export_buttons[what].click()
        assert f"✕</b> {what}: the weights change with every step" in studio._written.value
    assert not (tmp_path / "taken").exists()
    studio.export("trace")
    studio.pause()
    wait_until(lambda: studio.status == "paused")
    assert studio.export("adapter") == tmp_path / "taken" / "adapter"
    studio.stop()
    studio.wait(60)


def test_what_cannot_be_written_is_a_sentence(make_session, make_studio, base, tmp_path):
    studio = make_studio()
    studio.folder.value = " "
    studio._export_buttons["trace"].click()
    assert "folder is empty" in studio._written.value
    (tmp_path / "file").write_text("")
    studio.folder.value = str(tmp_path / "file" / "below")
    studio._export_buttons["figure"].click()
    assert "✕</b> figure: NotADirectoryError" in studio._written.value
    with pytest.raises(ConfigError, match=r"what='weights'.*'adapter', 'LoRA'"):
        studio.export("weights")

    out = tmp_path / "out"
    with_folder = make_session(out=out)
    with_folder.run()
    files = sorted(out.rglob("*"))
    with pytest.raises(SessionError, match="folder of a run"):
        make_studio(with_folder, folder=out).export("adapter")
    assert sorted(out.rglob("*")) == files


def test_code_is_refused_where_it_would_train_something_else(base, task, make_studio, tmp_path):
    other = Task("mine", task.domain, task.train, task.validation, task.test)
    config = VBLoRAConfig(num_vectors=16, vector_length=16, target_modules=["q_proj"])
    studio = make_studio(TrainingSession(base, config, other))
    with pytest.raises(SessionError, match=r"load_task\('mine'\)"):
        studio.export("code")
    unnamed = Base(load_base("mini-opt", device="cpu").model, base.tokenizer)
    unnamed.model.name_or_path = unnamed.model.config._name_or_path = ""
    with pytest.raises(SessionError, match="was not loaded by a name"):
        make_studio(TrainingSession(unnamed, config, task)).export("code")
    assert not (tmp_path / "taken").exists()


def test_other_sessions_and_runs_are_refused(make_session):
    with pytest.raises(ConfigError, match="session is of type str"):
        TrainingStudio("mini-opt")
    with pytest.raises(ConfigError, match=r"runs is of type list.*Runs\(folder\)"):
        TrainingStudio(make_session(), runs=[1])


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


# ---- what stays in the notebook -------------------------------------------------------------


def test_a_notebook_keeps_a_picture_of_the_run(make_session, make_studio):
    session = make_session()
    studio = make_studio(session)
    before = picture_of(studio)
    assert before["text/plain"] == "TrainingStudio"
    studio.train(wait=True)
    after = picture_of(studio)
    assert tall(after) > tall(before) + 300  # the curve and the map have come
    # In ipywidgets 7 no method of its own may come before the bundle.
    assert studio._ipython_display_ is None


def test_a_picture_says_what_is_trained_and_how_far(make_studio):
    studio = make_studio()
    assert "no step yet" in words(studio._picture())
    studio.train(wait=True)
    told = words(studio._picture())
    loss = studio.trace.losses[-1]
    for part in (
        "Training studio · ✓ completed", "mini-opt", "restaurants", "16 vectors of 16",
        "q_proj, v_proj", f"{STEPS} of 2 pairs", f"{loss:.3f} (nats per token)",
    ):  # fmt: skip
        assert part in told, part
    assert "no step yet" not in told


def picture_of(widget):
    data, metadata = widget._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"]
    return data


def tall(data):
    return int.from_bytes(base64.b64decode(data["image/png"])[20:24])


def words(figure):
    return "\n".join(text.get_text() for part in figure.subfigs for text in part.texts)
