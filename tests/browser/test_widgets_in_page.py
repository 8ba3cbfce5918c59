"""The canvas widgets in a plain page: what hand and keyboard get, against the selection itself."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from vblora_lab.selection import Selection, SubVectors
from vblora_lab.widgets import BankHeatmap, LossChart

PAGE = """<!doctype html><meta charset="utf-8"><style>
:root { --jp-ui-font-color0: INK; --jp-layout-color0: PAPER; --jp-ui-font-family: sans-serif }
body { margin: 20px; background: PAPER } CSS</style>
<body data-jp-theme-light="IS_LIGHT"><div id="widget"></div><script type="module">
class Model {  // the part of an anywidget model that the widgets use
  constructor(state) { this.listeners = {}; this.state = {}; this.load(state) }
  load(state) {
    for (const [name, value] of Object.entries(state)) {
      const bytes = value?.bytes === undefined ? null : atob(value.bytes);
      this.state[name] = bytes === null ? value
        : new DataView(Uint8Array.from(bytes, (c) => c.charCodeAt(0)).buffer);
    }
    for (const name of Object.keys(state)) for (const f of this.listeners[name] ?? []) f();
  }
  get(name) { return this.state[name] }
  set(name, value) { this.load({ [name]: value }) }
  save_changes() {}
  on(event, listener) { (this.listeners[event.slice(7)] ??= []).push(listener) }
  off(event, listener) {
    const name = event.slice(7);
    this.listeners[name] = this.listeners[name].filter((f) => f !== listener);
  }
}
const source = new Blob([SOURCE], { type: "text/javascript" });
const widget = (await import(URL.createObjectURL(source))).default;
window.model = new Model(STATE);
window.leave = widget.render({ model: window.model, el: document.getElementById("widget") });
window.ready = true;
</script>"""


def state_of(widget) -> str:
    """The synced traits as JSON, bytes in base64."""
    state = {}
    for name in widget.traits(sync=True):
        value = getattr(widget, name)
        if isinstance(value, bytes):
            state[name] = {"bytes": base64.b64encode(value).decode()}
        elif isinstance(value, (int, list)):
            state[name] = value
    return json.dumps(state)


class Open:
    """A widget open in a page."""

    def __init__(self, browser, widget, dark=False, width=900, scale=1):
        self.context = browser.new_context(
            viewport={"width": width, "height": 700}, device_scale_factor=scale
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        parts = {
            "CSS": widget._css, "SOURCE": json.dumps(widget._esm),
            "STATE": state_of(widget), "INK": "#fff" if dark else "#000",
            "PAPER": "#111" if dark else "#fff", "IS_LIGHT": "false" if dark else "true",
        }  # fmt: skip
        html = re.sub("|".join(sorted(parts, key=len)[::-1]), lambda m: str(parts[m[0]]), PAGE)
        self.page.set_content(html)
        self.page.wait_for_function("window.ready")
        self.canvas = self.page.locator("canvas")
        self.settle()

    def settle(self):
        """Wait until what was asked for is drawn."""
        self.page.evaluate(
            "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )

    def press(self, *keys):
        self.canvas.focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def move(self, x, y):
        box = self.canvas.bounding_box()
        self.page.mouse.move(box["x"] + x, box["y"] + y)
        self.settle()

    def click(self, x, y):
        self.canvas.click(position={"x": x, "y": y})
        self.settle()

    def update(self, widget):
        self.page.evaluate(f"window.model.load({state_of(widget)})")
        self.settle()

    def get(self, trait):
        return self.page.evaluate(f"window.model.get('{trait}')")

    @property
    def readout(self):
        return self.page.locator(".vblora-readout").inner_text()

    @property
    def tip(self):
        tip = self.page.locator(".vblora-tip")
        return tip.inner_text() if tip.is_visible() else None

    def colours(self):
        """How many different colours the canvas shows, and its size in device pixels."""
        return self.page.evaluate(
            """() => {
              const c = document.querySelector("canvas");
              const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
              const words = new Uint32Array(data.buffer);
              return { count: new Set(words).size, width: c.width, height: c.height };
            }"""
        )


@pytest.fixture
def open_page(browser):
    opened = []

    def open_widget(widget, **options):
        opened.append(Open(browser, widget, **options))
        return opened[-1]

    yield open_widget
    for page in opened:
        page.context.close()
        assert page.errors == []


def selection_of(layers=3, rows_each=8, num_vectors=32, seed=0) -> Selection:
    """Two modules in each layer, half of their rows A, half B; two vectors chosen in each row."""
    rng = np.random.default_rng(seed)
    names = [f"decoder.layers.{i}.self_attn.{m}" for i in range(layers) for m in ("q", "v")]
    count = len(names) * rows_each
    module = np.repeat(np.arange(len(names), dtype=np.int32), rows_each)
    best = rng.uniform(0.5, 1, count).astype(np.float32)
    within = np.tile(np.arange(rows_each, dtype=np.int32), len(names))
    return Selection(
        sub_vectors=SubVectors(
            modules=tuple(names),
            module=module,
            layer=module // 2,
            matrix=np.where(within < rows_each // 2, "A", "B"),
            rank=within % (rows_each // 2),
            tile=np.zeros(count, np.int32),
        ),
        num_vectors=num_vectors,
        indices=np.stack([rng.permutation(num_vectors)[:2] for _ in range(count)]).astype(np.int32),
        weights=np.stack([best, 1 - best], axis=1),
    )


def sentence(selection, row):
    """What the read-out has to say of a row, written here independently."""
    (a, b), (v, w) = selection.indices[row], selection.weights[row]
    label = selection.sub_vectors.label(row)
    return f"{label}: {v:.3f} of bank vector {a} + {w:.3f} of bank vector {b}"


def test_arrow_keys_read_every_cell_out(open_page):
    selection = selection_of()
    page = open_page(BankHeatmap(selection))
    page.press("ArrowDown")
    assert page.readout.startswith(sentence(selection, 0))
    page.press(*["ArrowDown"] * 5, "PageDown")
    assert page.readout.startswith(sentence(selection, 15))
    page.press("Home", "Control+ArrowRight")
    assert page.readout == sentence(selection, 15)  # on a chosen cell there is nothing to add
    column = min(c for c in selection.indices[15] if c > 0)
    page.press("ArrowUp", "Home", *["ArrowRight"] * int(column))
    absent = f" (bank vector {column} is not chosen)"
    chosen = column in selection.indices[14]
    assert page.readout == sentence(selection, 14) + ("" if chosen else absent)
    assert page.page.locator(".vblora-readout").get_attribute("aria-live") == "polite"


def test_pointing_shows_the_same_in_tip_and_readout(open_page):
    selection = selection_of()
    page = open_page(BankHeatmap(selection))
    size = page.canvas.bounding_box()
    page.move(size["width"] * 0.6, size["height"] * 0.5)
    label = page.readout.split(": ")[0]
    row = [selection.sub_vectors.label(i) for i in range(48)].index(label)
    assert page.readout.startswith(sentence(selection, row))
    told = " · ".join(page.tip.split("\n")[:2])
    assert told == label
    for vector, weight in zip(selection.indices[row], selection.weights[row], strict=True):
        assert f"{weight:.3f} of bank vector {vector}" in page.tip
    page.move(size["width"] + 5, -10)
    assert page.tip is None


def test_enter_pins_a_row_and_an_update_is_read_from_it(open_page):
    selection = selection_of()
    page = open_page(BankHeatmap(selection))
    page.press("ArrowDown", *["ArrowDown"] * 4, "Enter")
    assert page.get("pinned_row") == 4
    page.canvas.evaluate("canvas => canvas.blur()")
    page.settle()
    assert page.readout == "pinned: " + sentence(selection, 4)
    later = selection_of(seed=1)
    widget = BankHeatmap(later)
    widget.pinned_row = 4
    page.update(widget)
    assert page.readout == "pinned: " + sentence(later, 4)
    assert page.page.locator(".vblora-readout").get_attribute("aria-live") == "off"
    page.press("Escape")
    assert page.get("pinned_row") == -1


def test_a_click_on_a_bar_lights_all_that_share_the_vector(open_page):
    selection = selection_of()
    page = open_page(BankHeatmap(selection))
    page.press("ArrowDown", "Control+ArrowRight", " ")
    vector = page.get("lit_vector")
    assert vector == min(c for c in selection.indices[0] if c > 0)
    page.press(" ")
    assert page.get("lit_vector") == -1

    size = page.canvas.bounding_box()
    plain = page.colours()["count"]
    page.click(size["width"] * 0.5, 30)
    vector = page.get("lit_vector")
    assert vector >= 0
    page.move(size["width"] / 2, -15)
    count = int((selection.indices == vector).sum())
    usage = selection.dense()[:, vector].sum()
    assert page.readout == (
        f"lit: bank vector {vector}: chosen by {count} of 48 sub-vectors, summed weight {usage:.2f}"
    )
    assert page.colours()["count"] != plain


def test_a_click_on_a_layer_shows_it_alone(open_page):
    selection = selection_of()
    page = open_page(BankHeatmap(selection))
    size = page.canvas.bounding_box()
    page.click(20, size["height"] * 0.5)  # beside the middle layer
    page.press("ArrowDown", *["PageUp"] * 9)
    assert page.readout.startswith(sentence(selection, 16))
    page.press(*["PageDown"] * 9)
    assert page.readout.startswith(sentence(selection, 31))
    page.press("z", *["PageDown"] * 9)
    assert page.readout.startswith(sentence(selection, 47))


def test_3456_rows_stay_visible_and_reachable(open_page):
    selection = selection_of(layers=12, rows_each=144, num_vectors=256)
    assert len(selection.sub_vectors) == 3456
    page = open_page(BankHeatmap(selection))
    assert page.colours()["count"] > 30
    size = page.canvas.bounding_box()
    for x, y in ((0.4, 0.3), (0.6, 0.5), (0.8, 0.7)):
        page.move(size["width"] * x, size["height"] * y)
        label = page.readout.split(": ")[0]
        rows = [selection.sub_vectors.label(i) for i in range(3456)]
        assert page.readout == sentence(selection, rows.index(label))  # snapped to a chosen cell
    milliseconds = page.page.evaluate(
        """async () => {
          const start = performance.now();
          for (let i = 0; i < 10; i++) {
            window.model.set("weights", window.model.get("weights"));
            await new Promise(requestAnimationFrame);
          }
          return (performance.now() - start) / 10;
        }"""
    )
    assert milliseconds < 200  # five updates a second leave the browser free for other work


@pytest.mark.parametrize("scale", [1, 2])
def test_the_canvas_has_the_pixels_of_the_screen(open_page, scale):
    page = open_page(BankHeatmap(selection_of()), scale=scale, width=700)
    box = page.canvas.bounding_box()
    assert abs(page.colours()["width"] - scale * box["width"]) <= 1
    page.page.set_viewport_size({"width": 420, "height": 700})
    page.settle()
    page.settle()
    assert abs(page.colours()["width"] - scale * page.canvas.bounding_box()["width"]) <= 1
    overflow = page.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    assert not overflow


def test_dark_and_light_pages_get_different_pictures(open_page, screenshots):
    pictures = []
    for dark in (False, True):
        page = open_page(BankHeatmap(selection_of()), dark=dark)
        name = "heatmap-dark.png" if dark else "heatmap-light.png"
        pictures.append(page.canvas.screenshot(path=screenshots / name))
    assert pictures[0] != pictures[1]


def test_an_empty_heatmap_takes_keys_and_pointers_without_error(open_page):
    page = open_page(BankHeatmap())
    page.press("ArrowDown", "Enter", "z", " ")
    page.click(200, 200)
    assert page.readout == "" and page.tip is None
    assert page.get("pinned_row") == -1


def test_a_view_that_is_gone_listens_no_more(open_page):
    page = open_page(BankHeatmap(selection_of()))
    page.page.evaluate("window.leave(); document.getElementById('widget').remove()")
    page.page.evaluate("window.model.set('pinned_row', 3)")
    left = page.page.evaluate("Object.values(window.model.listeners).flat().length")
    assert left == 0


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
