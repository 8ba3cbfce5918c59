"""A recorded run in a page of its own: played, paused and scrubbed, against the trace itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ipywidgets.widgets.widget import _remove_buffers
from offline import is_dark, open_file, overflows

from vblora_lab import RecordedTraining, Trace
from vblora_lab.errors import DataError
from vblora_lab.runs.events import Started
from vblora_lab.tables import readable

RUN = Trace.load(Path(__file__).parent / "data" / "run.trace")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return RecordedTraining(RUN, "<b>A run").to_html(tmp_path_factory.mktemp("run") / "run.html")


@pytest.fixture
def opened(browser, file):
    pages = []

    def open_it(path=file, **options):
        pages.append(open_file(browser, path, **options))
        return pages[-1]

    yield open_it
    for page in pages:
        page.context.close()
        assert page.wrong == []


def slider(page):
    return page.get_by_role("slider", name="training step")


def at_step(page, step):
    page.locator(".vblora-replay-step", has_text=f"step {step} of").wait_for()
    page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


def read_out(page, key):
    """What the loss chart says of the point to which a key leads."""
    page.locator("canvas").first.focus()
    page.keyboard.press(key)
    page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    return page.locator(".vblora-readout").first.inner_text()


def tile(page, name):
    box = page.locator(".vblora-tile").filter(has=page.get_by_text(name, exact=True))
    return box.locator(".vblora-tile-number").inner_text()


def test_it_shows_the_run_up_to_its_step_and_no_further(opened):
    page = opened()
    assert page.locator(".vblora-title").inner_text() == "<b>A run"
    at_step(page, 0)
    assert tile(page, "loss") == "—"
    slider(page).fill("120")
    at_step(page, 120)
    loss = RUN.losses[RUN.steps == 120][0]
    assert tile(page, "loss") == f"{loss:.3f}"
    mean = RUN.losses[110:120].mean()
    assert read_out(page, "End") == (
        f"step 120 · loss {loss:.3f} · mean of the last 10: {mean:.3f}"
    )
    assert tile(page, "stored") == readable(RUN.stored_bytes)
    assert tile(page, "validation") == f"{RUN.eval_losses[0]:.3f}"
    slider(page).fill("200")
    at_step(page, 200)
    assert tile(page, "validation") == f"{RUN.eval_losses[-1]:.3f}"
    assert f"validation {RUN.eval_losses[-1]:.3f}" in read_out(page, "End")


def test_the_map_and_the_texts_go_with_the_step(opened):
    page = opened()
    texts = page.locator(".vblora-samples")
    assert RUN.samples_before[0].text.strip()[:20] in texts.inner_text()
    after = RUN.samples_after[0].text.strip()[:20]
    canvas = page.locator("canvas").nth(1)
    pictures = []
    for step, shows_last in ((0, False), (49, False), (55, False), (200, True)):
        slider(page).fill(str(step))
        at_step(page, step)
        pictures.append(canvas.evaluate("canvas => canvas.toDataURL()"))
        assert (after in texts.inner_text()) == shows_last
    assert len(set(pictures)) == 4
    slider(page).fill("59")  # recorded was step 50, as at step 55
    at_step(page, 59)
    assert canvas.evaluate("canvas => canvas.toDataURL()") == pictures[2]
    assert page.locator(".vblora-scrubber").is_hidden()  # there is one slider, not two


def test_there_is_one_slider_before_the_first_frame_too(browser, file):
    page = browser.new_page()
    page.add_init_script("window.requestAnimationFrame = () => 0;")
    page.goto(file.as_uri())
    page.locator("canvas").nth(1).wait_for(state="attached")
    assert slider(page).count() == 1
    page.close()


def test_keys_step_and_space_plays_and_pauses(opened):
    page = opened()
    slider(page).focus()
    page.keyboard.press("ArrowRight")
    at_step(page, 1)
    assert slider(page).get_attribute("aria-valuetext") == "step 1 of 200"
    page.keyboard.press("End")
    at_step(page, 200)
    assert page.locator(".vblora-status").inner_text() == "✓ the end"
    page.keyboard.press("Home")
    at_step(page, 0)
    page.keyboard.press(" ")
    page.locator(".vblora-status", has_text="playing").wait_for()
    page.wait_for_function("document.querySelector('.vblora-replay-slider').value > 3")
    page.keyboard.press(" ")
    page.locator(".vblora-status", has_text="paused").wait_for()
    assert page.get_by_role("button", name="▶ Play").count() == 1


def test_it_plays_to_the_end_and_from_there_from_the_start(opened):
    page = opened()
    slider(page).fill("196")
    page.get_by_role("button", name="▶ Play").click()
    page.locator(".vblora-status", has_text="✓ the end").wait_for()
    at_step(page, 200)
    page.get_by_role("button", name="▶ Play").click()
    page.wait_for_function("document.querySelector('.vblora-replay-slider').value < 100")
    slider(page).fill("50")  # a hand on the slider ends the play
    page.locator(".vblora-status", has_text="paused").wait_for()
    at_step(page, 50)


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1024, True), (1400, False)])
def test_it_fits(opened, screenshots, width, dark):
    page = opened(width=width, dark=dark)
    slider(page).fill("120")
    at_step(page, 120)
    assert not overflows(page)
    assert is_dark(page.locator(".vblora-title")) == dark
    page.screenshot(path=screenshots / f"recorded-training-{width}-{dark}.png", full_page=True)


def test_a_run_without_a_map_or_texts_plays_too(opened, tmp_path):
    slower = Trace.load(Path(__file__).parent / "data" / "slower.trace")
    page = opened(RecordedTraining(slower).to_html(tmp_path / "slower.html"))
    slider(page).fill("10")
    at_step(page, 10)
    assert page.locator("canvas").count() == 1 and page.locator(".vblora-samples").count() == 0


def test_a_view_that_is_gone_listens_no_more(open_page):
    recorded = RecordedTraining(RUN)
    recorded.set_trait("loss", {"opened": None, "evaluations": None, "other_names": []})
    recorded.set_trait("map", {})
    page = open_page(recorded).page
    page.evaluate("window.leave()")
    assert page.evaluate("Object.values(window.model.listeners).flat().length") == 0


def test_in_a_notebook_its_arrays_travel_as_bytes():
    state, paths, buffers = _remove_buffers(RecordedTraining(RUN).get_state())
    assert ["loss", "opened"] in paths and ["map", "indices"] in paths
    assert len(buffers[paths.index(["loss", "opened"])]) == 3 * 4 * len(RUN.steps)
    assert json.dumps(state)  # no bytes are left in it


def test_the_step_that_is_shown_is_one_that_was_taken():
    recorded = RecordedTraining(RUN)
    recorded.step = 10**6
    assert recorded.step == 200
    recorded.step = 17
    assert recorded.step == 17


def test_an_empty_trace_is_refused():
    for events in ((), RUN.events[:1]):
        assert not events or isinstance(events[0], Started)
        with pytest.raises(DataError, match="no steps, so there is nothing to play back"):
            RecordedTraining(Trace(events))
