"""Wherever a base model with random weights is shown, that is said."""

import pytest

from vblora_lab import LiveTraining, Runs, Trace, TrainingStudio, load_base, load_task
from vblora_lab.app.train import report
from vblora_lab.bases import OPT_125M_RANDOM, Base, share_weights
from vblora_lab.plots import loss_curve, loss_curves
from vblora_lab.train import ProgressBar, TrainingSession
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.widgets import BankHeatmap

WORDS = "opt-125m-random (random weights)"


@pytest.fixture(scope="module")
def base():
    """mini-OPT, called as the random one: what counts here is the name."""
    mini = load_base(device="cpu")
    model = share_weights(mini.model)
    model.name_or_path = OPT_125M_RANDOM
    return Base(model, mini.tokenizer)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "one"


@pytest.fixture(scope="module")
def session(base, out):
    config = VBLoRAConfig(r=2, num_vectors=16, vector_length=128, target_modules=["q_proj"])
    session = TrainingSession(
        base, config, steps=2, batch_size=2, eval_examples=0, sample_count=0,
        out=out,
    )  # fmt: skip
    session.run()
    return session


def test_the_trace_says_so_in_memory_and_in_its_file(session, out):
    assert session.trace.base == Trace.load(out / "run.trace").base == WORDS
    runs = Runs(out.parent)
    assert WORDS in str(runs.compare()) and WORDS in runs._repr_html_()
    assert runs["one"].settings["base"] == WORDS


def test_the_panels_say_so(base, session):
    for panel in (LiveTraining(base, load_task()), TrainingStudio(session)):
        assert WORDS in panel._header.value
        panel.close()


def test_the_terminal_says_so(session, capsys):
    bar = ProgressBar()
    for event in session.trace.events:
        bar(event)
    assert WORDS in capsys.readouterr().err
    assert WORDS in report(session.base.label, session.trace)


def test_figures_say_so(session):
    figures = [loss_curve(session.trace), loss_curves({"one": session.trace})]
    for figure in figures:
        assert figure.axes[0].get_title("right") == WORDS
    assert WORDS in figures[0].alt


def test_runs_of_several_bases_say_which_is_which(session):
    other = Trace(())
    figure = loss_curves({"one": session.trace, "two": other})
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert f"one · {WORDS}" in labels and "two" in labels
    assert figure.axes[0].get_title("right") == ""


@pytest.mark.parametrize("of", ["session", "trace", "model"])
def test_the_heatmap_says_so(session, of):
    shown = {"session": session, "trace": session.trace, "model": session.model}[of]
    heatmap = BankHeatmap(shown)
    assert heatmap.base == WORDS
    assert heatmap.figure().axes[0].get_title("right") == WORDS
