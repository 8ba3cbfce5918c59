"""The bench in a real JupyterLab: a trained adapter is changed, measured and put back."""

from __future__ import annotations

import nbformat
from browser_lab import run_cell

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


def test_a_mixture_is_changed_measured_and_restored(browser, lab, screenshots):
    path = lab.write("bench", CELL, CHECK)
    page = lab.open(browser, "bench")
    page.set_default_timeout(60_000)
    run_cell(page)
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

    # What can't be done is said, by the browser, and does nothing.
    off = bench.locator("fieldset", has_text="everywhere")
    vector = off.get_by_label("bank vector")
    vector.fill("99")
    off.get_by_role("button").click()
    assert "31" in vector.evaluate("box => box.validationMessage")
    assert vector.evaluate("box => box === document.activeElement")
    assert bench.locator(".vblora-changes li").count() == 1

    bench.get_by_role("button", name="Undo all").click()
    bench.get_by_text("After undoing").wait_for(timeout=LONG)
    assert "no change" in bench.inner_text()
    run_cell(page, 1)
    page.get_by_text("all equal: True").wait_for(timeout=LONG)
    assert "rows by entropy pinned" in page.locator(".jp-Cell").nth(1).inner_text()

    # The map stays as it is when the page is loaded again: here with one module open.
    rows.select_option("layer")
    page.get_by_label("show", exact=True).select_option("modules")
    canvas.focus()
    for key in ("ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.get_by_role("button", name="All modules").wait_for()
    told = page.locator(".vblora-notice").inner_text()
    assert told.startswith("layer ") and "sub-vectors, each mixes 2 bank vectors" in told

    # Keys pressed in the map are the map's, so a cell is chosen first.
    page.locator(".jp-Cell").nth(1).locator(".jp-InputPrompt").first.click()
    # The notebook as it is stored has a picture for readers without a kernel.
    with page.expect_response(
        lambda answer: answer.request.method == "PUT" and path.name in answer.url
    ):
        page.keyboard.press("Control+s")
    outputs = nbformat.read(path, 4).cells[0].outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)
    page.reload()
    page.get_by_role("button", name="All modules").wait_for(timeout=LONG)
    assert page.locator(".vblora-notice").inner_text() == told
    page.context.close()
