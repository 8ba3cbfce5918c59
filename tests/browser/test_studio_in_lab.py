"""The studio in a real JupyterLab: train, reload the page meanwhile, take what was made."""

from __future__ import annotations

import json

import pytest
from browser_lab import TOKEN, jupyter_lab

LONG = 120_000  # milliseconds: for a kernel's first imports on a busy machine
MAKE = """\
from vblora_lab import LearningRates, TrainingSession, TrainingStudio, VBLoRAConfig

config = VBLoRAConfig(num_vectors=64, vector_length=64, target_modules=["q_proj", "v_proj"])
rates = LearningRates(bank=1e-2, logits=1e-1)
few = {"eval_examples": 8, "sample_count": 2, "learning_rates": rates}
earlier = TrainingSession("mini-opt", config, steps=30, seed=1, **few)
session = TrainingSession("mini-opt", config, steps=1000, **few)
studio = TrainingStudio(session, runs={"earlier": earlier.run()}, driver="thread")
studio"""


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    notebook = {
        "cells": [
            {
                "cell_type": "code", "execution_count": None, "id": "studio", "metadata": {},
                "outputs": [], "source": MAKE,
            }
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python",
                                    "name": "python3"}},
        "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip
    (folder / "files").mkdir()
    (folder / "files" / "studio.ipynb").write_text(json.dumps(notebook))
    with jupyter_lab(folder / "files", folder) as address:
        yield address, folder / "files"


def test_a_studio_outlives_a_reload_of_the_page(browser, lab, screenshots):
    address, files = lab
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(f"{address}/lab/tree/studio.ipynb?token={TOKEN}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=LONG)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Control+Enter")
    panel = page.locator(".vblora-panel")
    panel.wait_for(timeout=LONG)
    panel.get_by_role("listbox", name="other runs").select_option("earlier")
    panel.locator(".vblora-key", has_text="earlier").wait_for()
    page.keyboard.press("Control+s")
    panel.get_by_role("button", name="Train").click()
    wait_for_step(page, 3)

    page.reload()
    panel.wait_for(timeout=LONG)
    seen = wait_for_step(page, 4)  # what was told before, and the run goes on
    loss, heatmap = panel.locator("canvas").nth(0), panel.locator("canvas").nth(1)
    before = picture(loss), picture(heatmap)
    wait_for_step(page, seen + 5)
    assert picture(loss) != before[0]
    assert picture(heatmap) != before[1]
    assert "▶ training" in panel.locator(".vblora-status").inner_text()
    assert panel.locator(".vblora-key", has_text="earlier").is_visible()
    page.keyboard.press("Control+b")  # JupyterLab's side bar makes room
    shots = {"wide": 1280, "narrow": 560}
    for name, width in shots.items():
        page.set_viewport_size({"width": width, "height": 1900})
        page.wait_for_timeout(500)
        panel.screenshot(path=screenshots / f"studio-{name}-light.png")
    page.set_viewport_size({"width": 1280, "height": 1000})

    # The buttons still reach the kernel: weights rest only once the run does.
    panel.locator(".vblora-exports button", has_text="adapter").click()
    panel.get_by_text("✕ adapter: the weights change with every step").wait_for()
    panel.get_by_role("button", name="Stop").click()
    page.get_by_text("■ stopped").wait_for()
    for what, path in (("adapter", "adapter"), ("LoRA", "lora"), ("trace", "run.trace"),
                       ("figure", "loss.png"), ("code", "train.py")):  # fmt: skip
        panel.locator(".vblora-exports button", has_text=what).click()
        panel.get_by_text(f"✓ {what}: {files / 'studio' / path}").wait_for()
        assert (files / "studio" / path).exists()

    themes = f"{address}/lab/api/settings/@jupyterlab/apputils-extension:themes"
    dark = {"raw": json.dumps({"theme": "JupyterLab Dark"})}
    page.request.put(themes, data=dark, headers={"Authorization": f"token {TOKEN}"})
    page.reload()
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached", timeout=LONG)
    panel.wait_for(timeout=LONG)
    page.get_by_text("■ stopped").wait_for()  # the end is found again too
    for name, width in shots.items():
        page.set_viewport_size({"width": width, "height": 1900})
        page.wait_for_timeout(500)
        panel.screenshot(path=screenshots / f"studio-{name}-dark.png")
    context.close()


def picture(canvas) -> str:
    return canvas.evaluate("canvas => canvas.toDataURL()")


def wait_for_step(page, step: int) -> int:
    """Wait until that many steps are told; how many are then."""
    reached = page.wait_for_function(
        """step => {
          const text = document.querySelector(".vblora-steps")?.textContent ?? "";
          const told = Number(text.split(" ")[1]);
          return told >= step && told;
        }""",
        arg=step,
        timeout=LONG,
    )
    return int(reached.json_value())
