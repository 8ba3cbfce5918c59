"""`vblora-lab tune`: its files, its exit status, and what it refuses."""

import argparse
import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from vblora_lab.app.tune import size
from vblora_lab.cli import main

pytest.importorskip("optuna")

SMALL = [
    "--bytes", "30k", "--trials", "2", "--steps", "2", "--batch-size", "2", "--eval-examples", "2"
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1), ("250000", 250_000), ("250k", 250_000), ("250 kB", 250_000), ("1.5M", 1_500_000),
        ("250KiB", 256_000), ("2MiB", 2**21), ("1g", 10**9),
    ],
)  # fmt: skip
def test_sizes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "k", "-3k", "0", "12 parsecs", "1e5", "0.1"])
def test_no_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="250k"):
        size(text)


def test_what_it_leaves(tmp_path, capsys):
    out = tmp_path / "search"
    assert main(["tune", "mini-opt", *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2 trials of 2 steps")
    assert said[-1].startswith(f"Left in {out}: front.png, trials.csv, best.py, and trial-00")
    with open(out / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["trial-000", "trial-001"]
    best = min(rows, key=lambda row: float(row["loss"]))
    assert said[-2].startswith(f"Best: {best['trial']}, validation loss {float(best['loss']):.4f}")
    for row in rows:
        adapter = out / row["trial"] / "adapter" / "adapter_model.safetensors"
        assert adapter.stat().st_size <= int(row["bytes"]) <= 30_000
    with Image.open(out / "front.png") as picture:
        assert min(picture.size) > 400
    code = (out / "best.py").read_text()
    compile(code, "best.py", "exec")
    assert "'mini-opt'" in code or '"mini-opt"' in code


def test_what_is_wrong_is_said_in_a_line(tmp_path, capsys):
    for options, words in (
        (["--bytes", "3k"], "no adapter is so small"),
        (["--methods", "lroa"], "Did you mean 'lora'"),
        (["--task", "restarants"], "restaurants"),
    ):
        assert main(["tune", "--out", str(tmp_path / "a"), *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vblora-lab: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "a").exists()
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--out", str(tmp_path / "a"), "--bytes", "much"])
    assert caught.value.code == 2 and "250KiB" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a lone process can't be sent Ctrl-C there")
def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path, capsys):
    out = tmp_path / "search"
    options = ["tune", "--out", str(out), *SMALL, "--steps", "300", "--trials", "1"]
    running = subprocess.Popen(
        [sys.executable, "-m", "vblora_lab.cli", *options], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while running.poll() is None and not (out / "trial-000" / "run.trace").exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    said, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    assert said.splitlines()[-1].endswith(f"the same call with out={str(out)!r} goes on.")
    assert errors.splitlines()[-1] == "vblora-lab: interrupted"
