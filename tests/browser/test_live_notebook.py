"""The first notebook in a real JupyterLab: a person moves a slider, trains, watches, stops."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from browser_lab import LONG, picture, wait_for_another_picture, wait_for_step

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "01-vblora-live.ipynb"


# Each change of the panel's words: its status, what it is doing, how many steps are done.
NOTE_WORDS = """() => {
  const panel = document.querySelector(".vblora-panel");
  const words = (window.words = []);
  const text = (part) => panel.querySelector(part)?.textContent ?? "";
  new MutationObserver(() => {
    const steps = Number(text(".vblora-steps").split(" ")[1] ?? 0);
    const now = [text(".vblora-status"), text(".vblora-doing"), steps];
    if (String(now) !== String(words.at(-1))) words.push(now);
  }).observe(panel, { childList: true, characterData: true, subtree: true });
}"""


@pytest.fixture
def page(browser, lab):
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, lab.files)
    lab.use_theme(dark=False)
    page = lab.open(browser, NOTEBOOK.removesuffix(".ipynb"))
    yield page
    page.context.close()


def show_panel(page):
    """Run the cells one after another, up to the one that shows the panel; stay on that one."""
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Escape")
    makes_panel = page.locator(".jp-mod-selected .cm-content", has_text="LiveTraining(")
    for _ in range(20):
        if makes_panel.count():
            break
        selected = page.locator(".jp-mod-selected .cm-content").first.element_handle()
        page.keyboard.press("Shift+Enter")
        page.wait_for_function(
            "before => !before.isConnected || !before.closest('.jp-mod-selected')", arg=selected
        )
    page.keyboard.press("Control+Enter")
    page.locator(".vblora-panel").wait_for(timeout=LONG)


def test_a_person_trains_live_and_stops(page, screenshots):
    show_panel(page)
    panel = page.locator(".vblora-panel")
    status = panel.locator(".vblora-status")
    assert "ready" in status.inner_text()
    assert not page.locator(".jp-WindowedPanel-outer").first.evaluate(
        "e => e.scrollWidth > e.clientWidth"
    )

    # A slider: its value goes to the kernel and comes back as the number beside it.
    topk = panel.locator(".widget-inline-hbox", has_text="topk")
    assert topk.locator(".widget-readout").inner_text() == "2"
    topk.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    assert topk.locator(".widget-readout").inner_text() == "3"

    panel.get_by_role("button", name="Train").scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "1-ready.png")
    page.evaluate(NOTE_WORDS)
    panel.get_by_role("button", name="Train").click()
    page.get_by_text("▶ training").wait_for()

    # What takes longer than a step is told before the first one ends.
    wait_for_step(page, 1)
    said = page.evaluate("words")
    before = said[: next(i for i, (_, _, steps) in enumerate(said) if steps > 0)]
    assert before[0][0] == "▶ training", "at once"
    done = [doing for _, doing, _ in before]
    for what in ("preparing the adapter", "reading", "writing texts", "measuring the loss"):
        assert any(text.startswith(what) for text in done), (what, done)
    assert said[-1][1] == "", "steps speak for themselves"

    # Loss and heatmap move while it trains.
    loss, heatmap = panel.locator("canvas").nth(0), panel.locator("canvas").nth(1)
    steps = panel.locator(".vblora-steps")
    wait_for_step(page, 3)
    before = picture(loss), picture(heatmap)
    at = steps.inner_text()
    wait_for_step(page, 10)
    assert steps.inner_text() != at
    wait_for_another_picture(loss, before[0])
    wait_for_another_picture(heatmap, before[1])

    # The kernel answers another cell meanwhile. Escape leads from a widget to its cell.
    heatmap.focus()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.type("print(6 * 7)")
    page.keyboard.press("Control+Enter")
    page.locator(".jp-OutputArea-output pre", has_text="42").wait_for()
    assert "training" in status.inner_text()

    # A pause holds it, a step is one step.
    panel.get_by_role("button", name="Pause").click()
    page.get_by_text("‖ paused").wait_for()
    paused_at = int(steps.inner_text().split(" ")[1])
    panel.get_by_role("button", name="Step").click()
    wait_for_step(page, paused_at + 1)
    page.wait_for_timeout(500)
    assert int(steps.inner_text().split(" ")[1]) == paused_at + 1
    panel.get_by_role("button", name="Stop").scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "2-paused.png")
    panel.get_by_role("button", name="Resume").click()
    wait_for_step(page, paused_at + 3)

    panel.get_by_role("button", name="Stop").scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "3-training.png")
    panel.get_by_role("button", name="Stop").click()
    page.get_by_text("■ stopped").wait_for()
    assert panel.get_by_role("button", name="Train").is_enabled()
    stopped_at = steps.inner_text()
    page.wait_for_timeout(1000)
    assert steps.inner_text() == stopped_at

    # Hovering reads out what the selection says, on both charts.
    heatmap.scroll_into_view_if_needed()
    heatmap.hover(position={"x": 300, "y": 200})
    panel.locator(".vblora-readout").nth(1).filter(has_text="of bank vector").wait_for()
    page.screenshot(path=screenshots / "4-stopped.png")

    # Controls, loss and map fit into one window.
    size = page.viewport_size
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.wait_for_function(
        """() => {
          const box = (part) => document.querySelector(part).getBoundingClientRect();
          const height = box(".vblora-columns").bottom - box(".vblora-panel").top;
          return height <= box(".jp-WindowedPanel-outer").height;
        }"""
    )
    page.set_viewport_size(size)

    # Training again starts from nothing.
    panel.get_by_role("button", name="Train").click()
    page.get_by_text("▶ training").wait_for()
    wait_for_step(page, 2)
    panel.get_by_role("button", name="Stop").click()
    page.get_by_text("■ stopped").wait_for()
