"""How quickly the config explorer answers: from a change of the form to numbers on the screen.

    python benchmarks/explorer.py

"kernel" is the time from the fields' arrival to the answer's departure (plan, code and view);
"page" is the time from moving a slider in headless Chromium to the drawn answer, the kernel's part
included. What a Jupyter server adds between the two is not measured. Writes
results/explorer.json: medians and maxima in milliseconds, bytes sent once and at each change.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from transformers import LlamaConfig, OPTConfig

from vblora_lab import PRESETS
from vblora_lab.widgets import ConfigExplorer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
from browser_lab import CHROMIUM_FLAGS, chromium  # noqa: E402
from explorer_page import ExplorerPage  # noqa: E402

REPEATS = 40
MODELS = {
    "OPT-125m": OPTConfig(),
    "Llama 70B": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8,
    ),
}  # fmt: skip
# Moves the slider, and waits for the frame after the answer: then its numbers are drawn.
ONE_MOVE = """async (key) => {
  const slider = document.querySelector("[aria-label='r, slider']");
  const seen = window.answers ?? 0;
  const start = performance.now();
  slider.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  while ((window.answers ?? 0) === seen) await new Promise((r) => setTimeout(r, 0));
  await new Promise((r) => requestAnimationFrame(() => setTimeout(r, 0)));
  return performance.now() - start;
}"""


def in_kernel(explorer: ConfigExplorer) -> list[float]:
    times = []
    for i in range(REPEATS):
        fields = {**explorer.fields, "r": 5 + i % 2}
        start = time.perf_counter()
        explorer.fields = fields
        times.append(1000 * (time.perf_counter() - start))
    return times


def in_page(page: ExplorerPage) -> list[float]:
    keys = ["ArrowRight", "ArrowLeft"] * (REPEATS // 2)
    return [page.page.evaluate(ONE_MOVE, key) for key in keys]


def summary(times: list[float]) -> dict[str, float]:
    return {"median_ms": round(statistics.median(times), 2), "max_ms": round(max(times), 2)}


def main() -> None:
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        for name, model in MODELS.items():
            for preset in ("basic", "all-linear"):
                start = time.perf_counter()
                explorer = ConfigExplorer(model, PRESETS[preset].config())
                made = 1000 * (time.perf_counter() - start)
                row = {
                    "model": name,
                    "preset": preset,
                    "construction_ms": round(made, 1),
                    "kernel": summary(in_kernel(explorer)),
                    "page": summary(in_page(ExplorerPage(browser, explorer))),
                    "bytes_once": len(json.dumps(explorer.catalogue)),
                    "bytes_each_change": len(json.dumps([explorer.view, explorer.code])),
                }
                print(json.dumps(row))
                rows.append(row)
        version = browser.version
        browser.close()
    machine = {"processor": platform.machine(), "python": platform.python_version()}
    result = {"machine": {**machine, "chromium": version}, "repeats": REPEATS, "rows": rows}
    out = ROOT / "benchmarks" / "results" / "explorer.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
