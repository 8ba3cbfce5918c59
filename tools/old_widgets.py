"""Play with every widget in a real browser, in a notebook as it was with ipywidgets 7.

`tools/platforms.py colab` calls this. Colab's own page can't be run elsewhere; what runs here is
the classic notebook, which shows widgets with the same code of ipywidgets 7.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
from browser_lab import CHROMIUM_FLAGS, chromium

LONG = 180_000  # milliseconds
MAKE = """
from transformers import OPTConfig
from vblora_lab import (
    BankHeatmap, ConfigExplorer, LiveTraining, PRESETS, TrainingSession, TrainingStudio,
    VBLoRAConfig, load_base
)
from vblora_lab.widgets import LossChart
config = VBLoRAConfig(num_vectors=32, vector_length=64, target_modules=["q_proj", "v_proj"])
few = {"steps": 3, "batch_size": 2, "eval_examples": 0, "sample_count": 0}
base = load_base("mini-opt")
session = TrainingSession(base, config, **few)
session.run()
"""
CELLS = {
    "ConfigExplorer": 'ConfigExplorer(OPTConfig(), PRESETS["basic"].config())',
    "BankHeatmap": "BankHeatmap(session)",
    "LossChart": "chart = LossChart()\nchart.append([1, 2], [3.0, 1.0])\nchart",
    "LiveTraining": 'LiveTraining(base, config=config, driver="thread", **few)',
    "TrainingStudio": (
        'TrainingStudio(TrainingSession(base, config, **few), runs={"a": session.trace}, '
        'driver="thread")'
    ),
}
CHANGED = "([canvas, before]) => canvas.toDataURL() !== before"


def see(python: Path, folder: Path, env: Mapping[str, str]) -> list[str]:
    """Show and use each widget; returns what was seen of each. Raises where one does nothing.

    Args:
        python: of an environment with the lab and notebook 6.
        folder: an empty one.
    """
    from playwright.sync_api import sync_playwright

    path = write(folder / "widgets.ipynb", [MAKE, *CELLS.values()])
    with sync_playwright() as playwright, classic_notebook(python, folder, env) as address:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(LONG)
        page.goto(f"{address}/notebooks/{path.name}")
        page.locator(".kernel_idle_icon").wait_for()
        page.evaluate("Jupyter.notebook.execute_all_cells()")
        outputs = dict(zip(CELLS, page.locator(".cell").all()[1:], strict=True))
        seen = [f"{name}: {USES[name](page, outputs[name])}" for name in CELLS]
        page.evaluate("Jupyter.notebook.save_notebook()")
        page.screenshot(path=folder / "widgets.png", full_page=True)
        browser.close()
    cells = json.loads(path.read_text())["cells"][1:]
    for name, cell in zip(CELLS, cells, strict=True):
        kept = [output.get("data", {}) for output in cell["outputs"]]
        assert any("image/png" in data for data in kept), f"{name} leaves no picture"
    return seen


def explorer(page, output) -> str:
    number = output.locator(".vblora-fact-number").first
    number.wait_for()
    before = number.inner_text()
    output.get_by_label("num_vectors, slider").focus()
    page.keyboard.press("ArrowRight")
    handle = number.element_handle()
    page.wait_for_function("([e, before]) => e.textContent !== before", arg=[handle, before])
    return f"a slider's step changed {before} trained parameters to {number.inner_text()}"


def heatmap(page, output) -> str:
    canvas = output.locator(".vblora-stage canvas")
    canvas.wait_for()
    before = picture(canvas)
    output.get_by_label("rows by").select_option("entropy")
    wait_for_change(page, canvas, before)
    canvas.focus()
    page.keyboard.press("ArrowDown")
    readout = output.locator(".vblora-readout", has_text="of bank vector")
    readout.wait_for()
    return f"sorted by the kernel; the read-out says “{readout.inner_text().split(';')[0]}”"


def loss_chart(page, output) -> str:
    output.locator("canvas").focus()
    page.keyboard.press("End")
    readout = output.locator(".vblora-readout", has_text="step 2")
    readout.wait_for()
    return f"the read-out says “{readout.inner_text()}”"


def panel(page, output) -> str:
    canvas = output.locator("canvas").nth(1)
    canvas.wait_for()
    before = picture(canvas)
    output.get_by_role("button", name="Train").click()
    output.get_by_text("✓ completed").wait_for()
    wait_for_change(page, canvas, before)
    return f"trained when told to: {output.locator('.vblora-steps').inner_text()}"


USES = {
    "ConfigExplorer": explorer, "BankHeatmap": heatmap, "LossChart": loss_chart,
    "LiveTraining": panel, "TrainingStudio": panel,
}  # fmt: skip


def picture(canvas) -> str:
    return canvas.evaluate("canvas => canvas.toDataURL()")


def wait_for_change(page, canvas, before: str) -> None:
    page.wait_for_function(CHANGED, arg=[canvas.element_handle(), before])


def write(path: Path, sources: list[str]) -> Path:
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [{**code, "source": source.strip()} for source in sources],
        "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4,
    }  # fmt: skip
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


@contextmanager
def classic_notebook(python: Path, folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """The address of a server of notebook 6 for that folder, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        python, "-m", "notebook", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--port-retries=0", f"--notebook-dir={folder}", "--NotebookApp.token=",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=dict(env))
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()
