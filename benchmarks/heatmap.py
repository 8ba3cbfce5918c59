"""How long BankHeatmap takes: the kernel for an update, a browser for the frame after it.

    python benchmarks/heatmap.py                # writes results/heatmap.json

The kernel's time is that of `update`, messages included, without a front end to read them. The
frame's time is from setting a trait to the end of the drawing that it causes, in headless Chromium
on the processor: with the map of modules alone (`modules`), as in a training panel, with that of
sub-vectors (`map`), and with modules and all linked views (`views`). Medians after a warm-up.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.widgets import BankHeatmap

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
from browser_lab import CHROMIUM_FLAGS, chromium
from widget_page import Open

RESULTS = Path(__file__).parent / "results" / "heatmap.json"
# name: layers, modules in each, sub-vectors of a module, bank vectors; the package's targets: the
# most milliseconds for an update and for a frame
SIZES = {
    "576 x 256 (OPT-125m, q and v)": (12, 2, 24, 256, 1.0, 50.0),
    "5,000 x 2,048": (50, 2, 50, 2048, None, 200.0),
}
ROUNDS = 40
VIEWS = (
    ("frame, modules", "modules", True),
    ("frame, map", "weights", True),
    ("frame, views", "modules", False),
)


def selections(layers: int, modules: int, each: int, vectors: int, count: int) -> list[Selection]:
    """Random choices of two bank vectors in each of layers * modules * each sub-vectors."""
    rng = np.random.default_rng(0)
    names = tuple(f"decoder.layers.{i}.m{j}" for i in range(layers) for j in range(modules))
    module = np.repeat(np.arange(len(names), dtype=np.int32), each)
    within = np.tile(np.arange(each, dtype=np.int32), len(names))
    rows = SubVectors(
        names, module, (module // modules).astype(np.int32),
        np.where(within < each // 2, "A", "B"), within % 4, within // 4,
    )  # fmt: skip
    found = []
    for _ in range(count):
        first = rng.integers(vectors, size=len(module))
        second = (first + rng.integers(1, vectors, size=len(module))) % vectors
        best = rng.uniform(0.5, 1, len(module))
        found.append(
            Selection(
                rows, vectors, np.stack([first, second], 1).astype(np.int32),
                np.stack([best, 1 - best], 1).astype(np.float32),
            )
        )  # fmt: skip
    return found


def update_ms(widget: BankHeatmap, choices: list[Selection]) -> float:
    times = []
    for i in range(ROUNDS + 5):
        start = time.perf_counter()
        widget.update(choices[i % len(choices)])
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times[5:]), 3)


# A frame is done when the callbacks that drawing was put off to have run: a timer set in one
# animation frame, after them, ends it.
FRAME = """async ([trait, values]) => {
  const times = [];
  for (let i = 0; i < values; i++) {
    await new Promise((done) => setTimeout(done, 30));
    const view = window.model.get(trait);
    const start = performance.now();
    window.model.set(trait, view);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[Math.floor(values / 2)];
}"""


def main() -> None:
    report = {
        "machine": {"processor": platform.processor() or platform.machine(),
                    "python": platform.python_version()},
        "unit": "milliseconds, median",
        "sizes": {},
    }  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        report["machine"]["chromium"] = browser.version
        for name, (*shape, most_update, most_frame) in SIZES.items():
            choices = selections(*shape, count=8)
            widget = BankHeatmap(choices[0], compact=True)
            figures = {"kernel update": update_ms(widget, choices)}
            for what, view, compact in VIEWS:
                shown = BankHeatmap(choices[0], compact=compact, view=view)
                shown.update(choices[1])  # so that there are changes to mark
                page = Open(browser, shown, width=1200)
                figures[what] = round(page.page.evaluate(FRAME, ["weights", 21]), 1)
                page.context.close()
            figures |= {"update at most": most_update, "frame at most": most_frame}
            report["sizes"][name] = figures
            print(name, figures)
        browser.close()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
