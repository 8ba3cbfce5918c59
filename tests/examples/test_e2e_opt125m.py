"""The E2E experiment, on the roads that need no hub."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vblora_lab import Trace
from vblora_lab.data import load_task, read_csv
from vblora_lab.data.e2e_scores import COLUMNS

SCRIPT = Path(__file__).parents[2] / "examples" / "e2e_opt125m.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("e2e_opt125m", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_csv(path, examples):
    rows = [f'"{e.mr}","{text}"' for e in examples for text in e.references]
    path.write_text("\n".join(["mr,ref", *rows]), encoding="utf-8")


def test_offline_it_trains_measures_and_says_what_it_could_not_measure(script, tmp_path, capsys):
    out = tmp_path / "e2e"
    argv = ["--offline", "--steps", "6", "--test-mrs", "3", "--batch-size", "2", "--out", str(out)]
    assert script.main(argv) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["base"] == "mini-opt" and summary["steps"] == 6
    trace = Trace.load(out / "run.trace")
    assert summary["validation_loss"] == pytest.approx(trace.eval_losses[-1])
    assert (out / "adapter" / "adapter_config.json").exists()
    assert len((out / "texts.txt").read_text(encoding="utf-8").splitlines()) == 3
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["vector_length"], config["topk"], config["r"]) == (256, 2, 4)
    printed = capsys.readouterr().out
    assert all(name in printed for name in COLUMNS)
    for name, score in summary["scores"].items():
        if isinstance(score, str):
            assert f"{name}: {score}" in printed
        else:
            assert f"{score:.2f}" in printed


def test_the_rates_are_the_paper_s(script, tmp_path):
    argv = ["--offline", "--steps", "20", "--test-mrs", "1", "--batch-size", "1"]
    script.main([*argv, "--out", str(tmp_path / "e2e")])
    rates = [e.learning_rates for e in Trace.load(tmp_path / "e2e" / "run.trace").events
             if hasattr(e, "learning_rates")]  # fmt: skip
    # A warm-up of 6% of 20 steps, rounded up, is 2 steps: 0, 1/2, and 1 at its end
    assert [r["bank"] for r in rates[:3]] == pytest.approx([0, 5e-4, 1e-3])
    assert [r["logits"] for r in rates[:3]] == pytest.approx([0, 5e-3, 1e-2])
    assert rates[-1]["bank"] == pytest.approx(1e-3 / 18)


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
