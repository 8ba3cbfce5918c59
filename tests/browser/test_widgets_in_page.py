"""The loss chart in a plain page: what hand and keyboard get, against the numbers themselves."""

from __future__ import annotations

import numpy as np

from vblora_lab.train import Stepped, Trace
from vblora_lab.widgets import LossChart


def test_loss_chart_reads_steps_out(open_page, screenshots):
    chart = LossChart(total_steps=40)
    losses = np.linspace(4, 2, 30)
    chart.append(range(1, 31), losses.tolist())
    chart.append_evaluation(30, 2.5)
    page = open_page(chart)
    page.press("ArrowRight")
    assert page.readout == "step 1 · loss 4.000 · mean of the last 10: 4.000"
    page.press("ArrowRight", "End")
    mean = losses[-10:].mean()
    assert page.readout == (
        f"step 30 · loss 2.000 · mean of the last 10: {mean:.3f} · validation 2.500"
    )
    assert page.tip.split("\n")[0] == "step 30"
    size = page.canvas.bounding_box()
    page.move(size["width"] / 2, 50)
    step = int(page.readout.split(" ")[1])
    assert 18 <= step <= 23  # the middle of an axis of 40 steps
    assert f"loss {losses[step - 1]:.3f}" in page.readout
    page.canvas.screenshot(path=screenshots / "loss-chart.png")


def test_other_runs_lie_under_the_line_and_are_read_out(open_page, screenshots):
    chart = LossChart(total_steps=20, smooth_over=1)
    chart.append(range(1, 21), np.linspace(4, 2, 20).tolist())
    page = open_page(chart)
    alone = page.colours()["count"]
    steps = np.arange(1, 31)
    chart.overlay({"<b>one": trace_of(steps, 5 - steps / 10), "two": trace_of(steps, steps / 10)})
    page.update(chart)
    assert page.page.locator(".vblora-key").all_inner_texts()[-2:] == ["<b>one", "two"]
    assert page.colours()["count"] > alone
    page.press("End")  # of this run: the others go on to step 30
    assert page.readout.endswith("<b>one 3.000 · two 2.000")
    page.canvas.screenshot(path=screenshots / "loss-chart-others.png")
    chart.smooth_over = 5
    page.update(chart)
    assert "mean of the last 5" in page.page.locator(".vblora-legend").inner_text()
    assert page.readout.endswith("<b>one 3.200 · two 1.800")  # the means of steps 16 to 20
    chart.overlay({})
    page.update(chart)
    assert page.page.locator(".vblora-key").count() == 3


def trace_of(steps, losses):
    return Trace(
        tuple(
            Stepped(int(step), 30, float(loss), {}, 1.0, 1.0, 0.0, float(step))
            for step, loss in zip(steps, losses, strict=True)
        )
    )


def test_loss_chart_grows_with_appends(open_page):
    chart = LossChart(total_steps=20)
    page = open_page(chart)
    assert page.readout == ""
    page.press("ArrowRight")  # nothing to read yet
    chart.append([1, 2, 3], [3.0, 2.0, 1.0])
    page.update(chart)
    page.press("End")
    assert page.readout == "step 3 · loss 1.000 · mean of the last 10: 2.000"
    chart.reset(10)
    page.update(chart)
    assert page.readout == "" and page.tip is None


def test_the_table_has_the_numbers_of_the_chart(open_page):
    chart = LossChart(total_steps=100)
    losses = np.linspace(4, 2, 100)
    chart.append(range(1, 101), losses.tolist())
    chart.append_evaluation(0, 4.5)
    chart.append_evaluation(50, 3.25)
    chart.overlay({"<b>one": trace_of(np.arange(1, 51), np.full(50, 1.5))})
    page = open_page(chart)
    summary = page.page.get_by_text("Table", exact=True)
    summary.focus()
    page.page.keyboard.press("Enter")
    table = page.page.get_by_role("table")
    table.wait_for()
    rows = [line.split("\t") for line in table.locator("tbody").inner_text().split("\n")]
    assert [row[0] for row in rows][:2] == ["0", "1"] and rows[-1][0] == "100"
    assert 20 <= len(rows) <= 22
    by_step = {row[0]: row[1:] for row in rows}
    assert by_step["0"] == ["", "", "4.500", ""]
    assert by_step["50"] == [
        f"{losses[49]:.3f}", f"{losses[40:50].mean():.3f}", "3.250", "1.500"
    ]  # fmt: skip
    assert by_step["100"] == ["2.000", f"{losses[90:].mean():.3f}", "", ""]
    chart.append([101], [1.0])
    page.update(chart)
    assert "101\t1.000" in table.inner_text()


def test_a_long_run_is_drawn_as_quickly_as_it_is_looked_at(open_page):
    """The outline of what lies in a column of pixels is enough: stroking it all takes minutes."""
    losses = np.random.default_rng(0).uniform(2, 3, 100_000)
    losses[50_000] = 9
    chart = LossChart(total_steps=len(losses))
    chart.append(range(1, len(losses) + 1), losses.tolist())
    page = open_page(chart)
    top = """() => {  // how high the line reaches: its highest pixel in blue
      const c = document.querySelector(".vblora-stage canvas");
      const { data } = c.getContext("2d").getImageData(60, 0, c.width - 80, c.height);
      for (let i = 0; i < data.length; i += 4)
        if (data[i + 2] - data[i] > 30) return Math.floor(i / 4 / (c.width - 80));
    }"""
    assert page.page.evaluate(top) < 30  # one step of so many stands out
