"""The chart of a search in a plain page: what hand and keyboard read and choose."""

from __future__ import annotations

import math

from peft import LoraConfig

from vblora_lab import FrontChart, LearningRates, Tuned, VBLoRAConfig
from vblora_lab.train.tune_result import Tried

NAN = math.nan
TRIALS = (  # name, bytes, loss at the end, last loss that is known
    ("a", 40_000, 1.0, 1.0),
    ("b", 10_000, 1.5, 1.5),
    ("<i>c", 20_000, NAN, 40.0),
    ("d", 30_000, NAN, NAN),
    ("e", 35_000, 1.4, 1.4),
)


def chart_of(trials) -> FrontChart:
    chart = FrontChart()
    chart.show(Tuned(tuple(map(tried, trials)), 50_000, {}))
    return chart


def tried(row) -> Tried:
    name, size, loss, last = row
    lora = name == "b"
    config = LoraConfig(r=2) if lora else VBLoRAConfig(r=3, num_vectors=8, vector_length=4)
    state = "completed" if loss == loss else "cut short"
    method = "lora" if lora else "vblora"
    return Tried(name, method, "attention", config, LearningRates(), size, loss, last, state)


def test_trials_are_read_by_size_and_chosen_by_key_and_click(open_page, screenshots):
    page = open_page(chart_of(TRIALS))
    assert page.page.locator(".vblora-key").all_inner_texts() == [
        "VB-LoRA", "LoRA", "cut short", "best for its size", "budget"
    ]  # fmt: skip
    page.press("Home")
    assert page.readout.startswith("b · validation loss 1.5000, best for its size · 9.8 KiB · LoRA")
    page.press("ArrowRight")  # past the one whose loss nobody knows
    assert page.readout.startswith("<i>c · validation loss 40.0000, cut short")
    page.press("ArrowRight", "ArrowRight", "Enter")
    assert page.get("chosen") == "a" and "r 3, 8 vectors of 4, topk 2" in page.tip
    assert "loss 1.0000, the best" in page.readout
    page.canvas.screenshot(path=screenshots / "front-chart.png")
    page.press("Escape")
    assert page.tip is None
    width, bottom = page.canvas.bounding_box()["width"], page.get("height") - 60
    for x in range(62, int(width), 8):  # the best lies low; where, is for the chart to know
        page.move(x, bottom)
        if page.tip:
            break
    name = page.tip.split("\n")[0]
    page.click(x, bottom)
    assert page.get("chosen") == name
    assert not page.errors


def test_the_table_has_all_trials_and_an_empty_chart_says_what_will_be_there(open_page):
    page = open_page(chart_of(TRIALS))
    page.page.locator(".vblora-table summary").click()
    lines = page.page.locator(".vblora-table tbody tr")
    lines.first.wait_for()
    rows = lines.all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["a", "b", "<i>c", "d", "e"]
    assert "the best" in rows[0] and rows[3].split("\t")[2] == ""
    page.update(chart_of(()))
    assert page.readout == "" and not page.page.locator(".vblora-table").is_visible()
    assert not page.errors
