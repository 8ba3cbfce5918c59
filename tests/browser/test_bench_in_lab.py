"""The bench in a real JupyterLab: a trained adapter is changed, measured and put back."""

from __future__ import annotations

import nbformat
import pytest
from browser_lab import TOKEN, jupyter_lab

LONG = 180_000  # milliseconds: for a kernel's first imports and a short run on a busy machine
CELL = """
from vblora_lab import BankHeatmap, TrainingSession, VBLoRAConfig
config = VBLoRAConfig(num_vectors=32, vector_length=64, target_modules=["q_proj", "v_proj"])
session = TrainingSession(
    "mini-opt", config, steps=3, batch_size=2, eval_examples=0, sample_count=0
)
session.run()
before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
heatmap = BankHeatmap(session)
heatmap
"""
CHECK = """
import torch
print("all equal:", all(torch.equal(t, before[n]) for n, t in session.model.state_dict().items()))
print("rows by", heatmap.rows_by, "pinned", heatmap.pinned_row, heatmap.selected)
"""


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in (CELL, CHECK)]
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    nbformat.write(notebook, folder / "notebooks" / "bench.ipynb")
    with jupyter_lab(folder / "notebooks", folder) as address:
        yield address, folder / "notebooks" / "bench.ipynb"


def test_a_mixture_is_changed_measured_and_restored(browser, lab, screenshots):
    address, path = lab
    page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{address}/lab/tree/bench.ipynb?token={TOKEN}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=LONG)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+Enter")
    canvas = page.locator(".vblora-stage canvas")
    canvas.wait_for(timeout=LONG)

    # An order that only the kernel knows, then a row of it.
    rows = page.get_by_label("rows by")
    rows.select_option("entropy")
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    bench = page.locator(".vblora-bench")
    page.locator(".vblora-view-mixture .vblora-share").first.wait_for()
    swap = bench.locator("fieldset", has_text="Swap")
    page.wait_for_function("document.querySelector('.vblora-form select').options.length === 2")
    mixed = [int(text) for text in swap.locator("option").all_inner_texts()]
    new = min(set(range(32)) - set(mixed))
    swap.get_by_label("take").fill(str(new))
    swap.get_by_role("button").click()
    bench.get_by_text("With the change").wait_for(timeout=LONG)
    assert bench.locator(".vblora-changes li").count() == 1
    shares = page.locator(".vblora-view-mixture .vblora-share").all_inner_texts()
    assert any(f"bank vector {new}\n" in text for text in shares)
    bench.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "bench-in-lab.png")

    # What can't be done is said, and does nothing.
    off = bench.locator("fieldset", has_text="everywhere")
    off.get_by_label("bank vector").fill("99")
    off.get_by_role("button").click()
    bench.get_by_text("the bank has vectors 0 to 31").wait_for(timeout=LONG)

    bench.get_by_role("button", name="Undo all").click()
    bench.get_by_text("After undoing").wait_for(timeout=LONG)
    assert "no change" in bench.inner_text()
    page.locator(".jp-Notebook .jp-Cell").nth(1).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")
    page.get_by_text("all equal: True").wait_for(timeout=LONG)
    assert "rows by entropy pinned" in page.locator(".jp-Cell").nth(1).inner_text()

    # The notebook as it is stored has a picture for readers without a kernel.
    page.keyboard.press("Control+s")
    page.wait_for_timeout(3000)
    outputs = nbformat.read(path, 4).cells[0].outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)
    page.context.close()
