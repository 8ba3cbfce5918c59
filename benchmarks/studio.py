"""How much slower training is while a studio shows it: with JupyterLab and a browser attached.

    OMP_NUM_THREADS=2 GOMP_SPINCOUNT=2000 python benchmarks/studio.py    # results/studio.json

One session trains, and the studio is told of every second block of steps, so that both kinds of
blocks meet the same machine, model and data. The result is the throughput of all shown blocks
divided by that of all others (1 is no loss), with an interval from resampling pairs of blocks.
`browser` is with the studio on the screen of a headless Chromium, which draws on the same
processor; `kernel` is with the widget alone, as where the browser is on another machine. The first
steps of a block, in which the browser still draws the end of the last one, are left out. All texts
have about the same length, so that steps are alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from vblora_lab import LearningRates, TrainingSession, TrainingStudio, VBLoRAConfig, load_task
from vblora_lab.data import Example, Task
from vblora_lab.train import Stepped

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "studio.json"
AT_LEAST = 0.97  # the package's target
BLOCK = 10  # steps
LEFT_OUT = 2  # steps at the start of a block
PAIRS = 150
RESAMPLES = 2000
BATCH_SIZE = 8
TEXTS = 400


class EverySecondBlock(TrainingStudio):
    """A studio that is told of every second block of steps."""

    def _listen(self, event):
        if not isinstance(event, Stepped):
            self.told = getattr(self, "told", None)
        elif event.step % BLOCK == 1:
            self.told = event.step // BLOCK % 2 == 1
        if self.told is not False:
            super()._listen(event)


def texts_alike() -> Task:
    """The shipped task, cut to the pairs whose lengths are nearest to the median."""
    task = load_task()
    pairs = [Example(e.mr, (text,)) for e in task.train for text in e.references]
    pairs.sort(key=lambda pair: len(pair.mr + pair.references[0]))
    middle = (len(pairs) - TEXTS) // 2
    return replace(task, train=tuple(pairs[middle : middle + TEXTS]))


def studio() -> TrainingStudio:
    config = VBLoRAConfig(num_vectors=64, vector_length=64, target_modules=["q_proj", "v_proj"])
    session = TrainingSession(
        "mini-opt", config, texts_alike(), steps=2 * BLOCK * (PAIRS + 1), batch_size=BATCH_SIZE,
        eval_examples=0, sample_count=0, learning_rates=LearningRates(1e-2, 1e-1),
    )  # fmt: skip
    return EverySecondBlock(session, driver="thread")


def measure(shown: TrainingStudio) -> dict:
    """Train it; the throughput of each pair of blocks, and the seconds of a step without it."""
    at: list[tuple[int, float]] = []

    def note(event):
        if isinstance(event, Stepped):
            at.append((event.step, time.perf_counter()))

    shown.session.add_listener(note)
    shown.train(wait=True)
    seconds: dict[int, list[float]] = {}
    for (step, begin), (_, end) in pairwise(at):  # events of a step are handled before the next
        if (step - 1) % BLOCK >= LEFT_OUT:
            seconds.setdefault((step - 1) // BLOCK, []).append(end - begin)
    means = [statistics.mean(seconds[block]) for block in sorted(seconds)][2:]  # after a warm-up
    pairs = np.array(list(zip(means[::2], means[1::2], strict=False)))
    without, with_studio = pairs.T
    rng = np.random.default_rng(0)  # blocks differ in what else the machine does
    drawn = pairs[rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return {
        "throughput": round(float(without.sum() / with_studio.sum()), 4),
        "95% interval": [round(float(low), 4), round(float(high), 4)],
        "pairs of blocks": len(pairs),
        "ms per step without": round(1000 * float(without.mean()), 1),
    }


CELLS = (
    f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import studio
shown = studio.studio()
shown
""",
    "import json; print('measured', json.dumps(studio.measure(shown)))",
)


def in_browser() -> dict:
    sys.path.insert(0, str(ROOT / "tests" / "browser"))
    from browser_lab import CHROMIUM_FLAGS, LONG, chromium, jupyter, run_cell
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        home = Path(folder)
        (home / "files").mkdir()
        with jupyter("jupyterlab", home / "files", home) as lab:
            lab.write("measure", *CELLS)
            page = lab.open(browser, "measure")
            run_cell(page)
            page.locator(".vblora-panel").wait_for(timeout=LONG)
            run_cell(page, 1)
            page.locator(".vblora-panel").scroll_into_view_if_needed()
            told = page.locator(".jp-OutputArea-output pre", has_text="measured")
            told.wait_for(timeout=1_800_000)
            return json.loads(told.inner_text().partition(" ")[2]) | {
                "chromium": browser.version,
                "jupyterlab": version("jupyterlab"),
            }


def main() -> None:
    load = os.getloadavg()[0]
    report = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} "
        f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', 'unset')} python benchmarks/studio.py",
        "date": date.today().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "load before": round(load, 2),
            "python": platform.python_version(),
        }
        | {name: version(name) for name in ("torch", "ipywidgets", "anywidget")},
        "unit": "throughput with the studio over that without",
        "at least": AT_LEAST,
        "trained": f"mini-opt on the CPU, q_proj and v_proj, batches of {BATCH_SIZE}",
    }  # fmt: skip
    for name, measured in (("browser", in_browser), ("kernel", lambda: measure(studio()))):
        report[name] = measured()
        print(name, report[name], flush=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
