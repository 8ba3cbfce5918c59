"""The E2E experiment, on the roads that need no hub."""

import contextlib
import dataclasses
import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import vblora_lab
from vblora_lab import Trace, load_base
from vblora_lab.data import load_task, read_csv
from vblora_lab.data.e2e_scores import COLUMNS, e2e_scores
from vblora_lab.errors import BaseModelError, DataError
from vblora_lab.train import write_texts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "e2e_opt125m.py"
NOTEBOOK = ROOT / "notebooks" / "10-your-model-your-data.ipynb"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("e2e_opt125m", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_csv(path, examples):
    rows = [f'"{e.mr}","{text}"' for e in examples for text in e.references]
    path.write_text("\n".join(["mr,ref", *rows]), encoding="utf-8")


@pytest.fixture(scope="module")
def four_steps(script, tmp_path_factory):
    """Folder and words of a run that is offline, short, and else as it is meant."""
    out = tmp_path_factory.mktemp("e2e") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(script, "load_task", small_task)
        argv = ["--offline", "--steps", "4", "--test-mrs", "10", "--out", str(out)]
        assert script.main(argv) == 0
    return out, printed.getvalue()


def small_task(*_, **__):
    whole = load_task("restaurants")
    return dataclasses.replace(whole, validation=whole.validation[:3], test=whole.test[:2])


def test_offline_it_trains_measures_and_says_what_it_could_not_measure(four_steps):
    out, printed = four_steps
    summary = json.loads((out / "summary.json").read_text())
    assert summary["base"] == "mini-opt" and summary["steps"] == 4
    trace = Trace.load(out / "run.trace")
    assert summary["validation_loss"] == pytest.approx(trace.eval_losses[-1])
    assert (out / "adapter" / "adapter_config.json").exists()
    assert len((out / "texts.txt").read_text(encoding="utf-8").splitlines()) == 2
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["vector_length"], config["topk"], config["r"]) == (256, 2, 4)
    assert all(name in printed for name in COLUMNS)
    for name, score in summary["scores"].items():
        if isinstance(score, str):
            assert f"{name}: {score}" in printed
        else:
            assert f"{score:.2f}" in printed


def test_a_folder_with_a_run_is_gone_on_with_only_if_asked(four_steps, script, monkeypatch, capsys):
    out, _ = four_steps
    monkeypatch.setattr(script, "load_task", small_task)
    argv = ["--offline", "--steps", "4", "--out", str(out)]
    before = (out / "texts.txt").read_text(encoding="utf-8")
    assert script.main(argv) == 2 and "--resume" in capsys.readouterr().err
    assert script.main([*argv, "--resume"]) == 0 and "4 steps" in capsys.readouterr().out
    assert (out / "texts.txt").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("argv", [["--test", "t.csv"], ["--offline", "--train", "t.csv"]])
def test_an_option_that_would_do_nothing_is_refused(script, capsys, argv):
    with pytest.raises(SystemExit):
        script.parse(argv)
    assert argv[0] in capsys.readouterr().err


def test_the_rates_are_the_paper_s(four_steps):
    rates = [e.learning_rates for e in Trace.load(four_steps[0] / "run.trace").events
             if hasattr(e, "learning_rates")]  # fmt: skip
    # A warm-up of 6% of 4 steps, rounded up, is 1 step; then down to 0 in three.
    assert [r["bank"] for r in rates] == pytest.approx([0, 1e-3, 2e-3 / 3, 1e-3 / 3])
    assert [r["logits"] for r in rates] == pytest.approx([0, 1e-2, 2e-2 / 3, 1e-2 / 3])


def run_cell(**replaced):
    """Run the notebook's cell with other ways to load; returns what it defined."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if cell["id"] == "e2e"]
    made = {name: getattr(vblora_lab, name) for name in ("LearningRates", "VBLoRAConfig")}
    names = {
        "lab": SimpleNamespace(**made, **replaced),
        "BaseModelError": BaseModelError, "DataError": DataError,
        "write_texts": write_texts, "e2e_scores": e2e_scores,
    }  # fmt: skip
    exec(source, names)
    return names


def test_the_notebook_s_cell_is_the_same_experiment(four_steps, capsys):
    asked = []

    def load(make):
        return lambda name: asked.append(name) or make()

    def short(*arguments, **options):
        assert options.pop("steps") == 20
        return vblora_lab.TrainingSession(*arguments, steps=4, **options)

    made = run_cell(
        load_base=load(lambda: load_base(device="cpu")),
        load_task=load(small_task),
        TrainingSession=short,
    )
    assert asked == ["facebook/opt-125m", "e2e"]
    whole = Trace.load(four_steps[0] / "run.trace")
    assert made["e2e_trace"].losses == pytest.approx(whole.losses, abs=1e-5)
    printed = capsys.readouterr().out
    for name, score in json.loads((four_steps[0] / "summary.json").read_text())["scores"].items():
        shown = score if isinstance(score, str) else f"{score:.2f}"
        assert any(name in line and shown in line for line in printed.splitlines())


def test_the_cell_says_in_a_sentence_what_it_could_not_have(capsys):
    def nothing(_):
        raise BaseModelError("not here")

    assert "e2e_trace" not in run_cell(load_base=nothing)
    (line,) = capsys.readouterr().out.splitlines()
    assert "facebook/opt-125m" in line and "Left out" in line


def test_csv_files_as_the_challenge_has_them(script, tmp_path):
    task = load_task("restaurants")
    write_csv(tmp_path / "train.csv", task.train[:40])
    write_csv(tmp_path / "test.csv", task.test[:2])
    options = {"offline": False, "train": tmp_path / "train.csv", "seed": 0}
    made = script.load_data(SimpleNamespace(**options, test=tmp_path / "test.csv"))
    assert made.test == read_csv(tmp_path / "test.csv") and len(made.test[0].references) == 3
    mrs = [example.mr for example in made.train + made.validation]
    assert sorted(mrs) == sorted(example.mr for example in task.train[:40])
    assert len(made.validation) == 4
    alone = script.load_data(SimpleNamespace(**options, test=None))
    assert len(alone.train) + len(alone.validation) + len(alone.test) == 40


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "mini-opt", "--train", "none.csv"], r"none\.csv: can't be read"),
        (["--model", "mini_opt"], "did you mean 'mini-opt'"),
    ],
)
def test_what_can_t_be_had_is_said_in_a_line(script, tmp_path, capsys, argv, message):
    import re

    assert script.main([*argv, "--out", str(tmp_path / "e2e")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("e2e_opt125m: ") and re.search(message, error)
    assert not (tmp_path / "e2e").exists()
