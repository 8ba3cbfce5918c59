"""SubVector in a browser: its numbers are PyTorch's, and hand and keyboard reach all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from widget_page import state_of

from vblora_lab import SubVector
from vblora_lab.admixture import choose, low_rank_matrices
from vblora_lab.inspection.one_layer import ROW, example_layer
from vblora_lab.widgets._source import source

LAYERS = {
    "the example": example_layer(),
    "k = 3": example_layer(5, r=3, in_tiles=2, out_tiles=4, num_vectors=7, vector_length=6, topk=3),
    "k = 1": example_layer(6, num_vectors=4, topk=1),
    "all": example_layer(7, r=1, num_vectors=3, vector_length=5, topk=3),
}
MATHS = """(state) => {
  const array = (name) => Float64Array.from(state[name]);
  const names = ["rows", "bank", "x", "base", "wanted"];
  const make = () => new Layer(state.shape, ...names.map(array));
  const layer = make();
  const pass = layer.forward();
  const { rows, bank } = layer.gradients(pass);
  const one = make(), all = make();
  one.step(0.5, state.row);
  all.step(0.5);
  const list = (values) => Array.from(values);
  return {
    chosen: pass.mixtures.map((m) => m.indices), weights: pass.mixtures.map((m) => m.weights),
    mixed: pass.mixtures.map((m) => list(m.u)), output: list(pass.output), loss: pass.loss,
    rows: list(rows), bank: list(bank), one: list(one.rows), one_bank: list(one.bank),
    all: list(all.rows), all_bank: list(all.bank),
  };
}"""


@pytest.fixture(scope="module")
def maths(browser):
    """The widget's own script, as a function of a layer."""
    page = browser.new_page()
    page.add_script_tag(content=f"{source('sub_vector/maths.js')}\nwindow.Layer = Layer;")
    yield lambda state: page.evaluate(MATHS, state)
    page.close()


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_number_is_the_one_that_pytorch_has(maths, layer):
    """Choices, mixtures, output, loss and all gradients against admixture.py and autograd."""
    row = 1
    r, in_tiles, h = layer.logits_A.shape
    arrays = {
        name: getattr(layer, name).ravel().tolist() for name in ("bank", "x", "base", "wanted")
    }
    got = maths({
        **arrays, "rows": layer.rows.ravel().tolist(), "row": row,
        "shape": {"r": r, "in_tiles": in_tiles, "out_tiles": len(layer.logits_B),
                  "num_vectors": h, "vector_length": layer.bank.shape[1], "topk": layer.topk},
    })  # fmt: skip
    wide = {"dtype": torch.float64, "requires_grad": True}
    LA, LB, bank = (torch.tensor(v, **wide) for v in (layer.logits_A, layer.logits_B, layer.bank))
    x, base, wanted = (
        torch.tensor(v, dtype=torch.float64) for v in (layer.x, layer.base, layer.wanted)
    )
    A, B = low_rank_matrices(LA, LB, bank, layer.topk)
    output = base + B @ A @ x
    loss = (output - wanted).square().mean()
    loss.backward()
    rows = torch.tensor(layer.rows, dtype=torch.float64)
    indices, weights = choose(rows, layer.topk)
    gradients = torch.cat([LA.grad.reshape(-1, h), LB.grad.reshape(-1, h)])

    def same(name, expected):
        found = torch.tensor(got[name], dtype=torch.float64).reshape(expected.shape)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)

    assert got["chosen"] == indices.tolist()
    same("weights", weights)
    sub_vectors = [
        A.reshape(r * in_tiles, -1),
        B.reshape(len(layer.logits_B), -1, r).mT.flatten(0, 1),
    ]
    same("mixed", torch.cat(sub_vectors))
    same("output", output)
    same("loss", loss)
    same("rows", gradients)
    same("bank", bank.grad)
    only = torch.zeros_like(gradients)
    only[row] = gradients[row]
    same("one", rows - 0.5 * only)
    same("one_bank", bank)
    same("all", rows - 0.5 * gradients)
    same("all_bank", bank - 0.05 * bank.grad)
    assert (gradients != 0).any() or layer.topk == 1


@pytest.fixture
def shown(open_page):
    """The widget in a page, and what Python would have of it: the page's traits in the widget."""
    opened = {}

    def show(widget=None, **options):
        widget = widget or SubVector()
        opened["page"] = open_page(widget, **{"width": 1200, **options})
        opened["widget"] = widget
        return opened["page"].page

    def now():
        """The layer as Python has it after what was done in the page."""
        page, widget = opened["page"].page, opened["widget"]
        for name in ("logits", "bank"):
            values = page.evaluate(f"[...new Float32Array(model.get('{name}').buffer)]")
            setattr(widget, name, np.array(values, np.float32).tobytes())
        widget.topk = page.evaluate("model.get('topk')")
        widget.row = page.evaluate("model.get('row')")
        return widget.layer

    show.now = now
    return show


def words(page):
    page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    return page.locator(".vblora-sub-words").inner_text()


def slider(page, i):
    return page.locator(f".vblora-sub-handle[data-at='{i}']")


def press(page, name):
    page.get_by_role("button", name=name).click()
    return words(page)


def test_dragging_a_chosen_bar_changes_the_mixture_and_an_unchosen_one_nothing(shown):
    page = shown()
    before = shown.now()
    box = slider(page, 5).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 110, steps=3)
    page.mouse.up()
    assert "Vector 5 isn't chosen, so its logit moves and nothing else does" in words(page)
    after = shown.now()
    assert after.rows[ROW, 5] != before.rows[ROW, 5]
    np.testing.assert_array_equal(after.output, before.output)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 110)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 12, steps=3)
    page.mouse.up()
    assert "Vector 5 has overtaken vector 0: it is in the mixture now." in words(page)
    assert not np.array_equal(shown.now().output, before.output)
    assert (
        slider(page, 5)
        .get_attribute("aria-valuetext")
        .endswith(f"weight {choose(torch.tensor(shown.now().rows[ROW]), 2)[1][0]:.2f}")
    )


def test_a_step_is_three_parts_and_one_vector_overtakes_another(shown):
    page = shown()
    start = shown.now()
    assert "choose vectors 2 and 0" in words(page)
    assert "2 of 10 logits have a gradient, and these add up to 0" in press(page, "2 Gradients")
    assert page.locator(".vblora-sub-arrow.vblora-sub-head").count() == 2
    np.testing.assert_array_equal(shown.now().rows, start.rows)
    said = press(page, "3 Update")
    assert "fell for vector 2" in said and "rose for vector 0" in said
    assert "the others stayed where they were" in said
    for _ in range(3):
        said = press(page, "3 Update")
    assert "Vector 2 fell below vector 8, which has not moved, and so 8 is chosen now." in said
    end = shown.now()
    assert end.rows[ROW, 8] == start.rows[ROW, 8]
    others = np.delete(np.arange(len(start.rows)), ROW)
    np.testing.assert_array_equal(end.rows[others], start.rows[others])
    assert f"loss {end.loss:.3f}" in page.locator(".vblora-sub").inner_text()
    press(page, "Start again")
    np.testing.assert_array_equal(shown.now().rows, start.rows)


def test_all_can_be_trained_and_the_loss_falls(shown):
    page = shown()
    start = shown.now()
    page.get_by_label("a step moves").select_option("everything")
    page.get_by_role("button", name="Run 30 steps").click()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Run 30 steps").wait_for()
    page.get_by_role("button", name="3 Update").evaluate(
        "button => { for (let i = 0; i < 30; i++) button.click(); }"
    )
    end = shown.now()
    assert end.loss < 0.05 * start.loss
    assert (end.bank != start.bank).any() and (end.rows != start.rows).any(axis=1).sum() > 5


def test_one_vector_alone_never_learns_to_choose(shown):
    page = shown()
    page.get_by_label("k, how many are chosen").select_option("1")
    assert "every gradient is 0, and the choice can never change" in press(page, "2 Gradients")
    assert "No logit of this sub-vector moved." in press(page, "3 Update")


def test_a_step_that_explodes_is_taken_back(shown):
    page = shown(SubVector(moves="everything", rate=1e6))
    before = shown.now()
    for _ in range(3):
        said = press(page, "3 Update")
    assert "too large" in said
    assert np.isfinite(shown.now().bank).all() and np.isfinite(before.bank).all()


def test_the_keyboard_reaches_all_of_it(shown):
    page = shown()
    start = shown.now()
    slider(page, 0).focus()
    for key in ("End", "ArrowLeft", "ArrowUp", "ArrowUp", "PageDown"):
        page.keyboard.press(key)
        words(page)
    assert page.evaluate("document.activeElement.dataset.at") == "8"  # it kept the focus
    assert shown.now().rows[ROW, 8] == pytest.approx(start.rows[ROW, 8] - 0.3, abs=0.011)
    page.get_by_role("button", name="Zoom out").press("Enter")
    words(page)
    page.locator(f"[data-row='{ROW}'].vblora-sub-row").focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
        words(page)
    assert page.evaluate("[model.get('row'), model.get('zoomed_out')]") == [ROW + 2, False]
    assert "One sub-vector: A · rank 1 · tile 0" in page.locator(".vblora-chart-title").inner_text()


def test_zoomed_out_it_is_a_row_of_the_map(shown):
    page = shown()
    layer = shown.now()
    press(page, "Zoom out: one of 14 rows")
    rows = page.locator(".vblora-sub-row")
    assert rows.count() == len(layer.rows) == 14
    indices, weights = choose(torch.tensor(layer.rows), layer.topk)
    for row in (0, 13):
        said = rows.nth(row).get_attribute("aria-label")
        for i, weight in zip(indices[row].tolist(), weights[row].tolist(), strict=True):
            assert f"{weight:.2f} of vector {i}" in said
    rows.nth(9).click()
    words(page)
    assert "One sub-vector: B" in page.locator(".vblora-chart-title").inner_text()
    assert page.evaluate("model.get('row')") == 9


def test_another_layer_from_python_is_drawn(shown, open_page):
    page = shown()
    other = SubVector(LAYERS["k = 3"], row=2)
    page.evaluate(f"window.model.load({state_of(other)})")
    assert "The 3 largest logits choose" in words(page)
    assert page.locator(".vblora-sub-handle").count() == 7


def test_the_page_without_a_kernel_plays_the_same(browser, tmp_path):
    file = SubVector().to_html(tmp_path / "one.html")
    context = browser.new_context(offline=True, color_scheme="dark")
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    for _ in range(4):
        said = press(page, "3 Update")
    assert "8 is chosen now" in said and errors == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 30)"
    context.close()


@pytest.mark.parametrize(("width", "dark"), [(420, False), (760, True), (1160, False)])
def test_it_fits_and_is_readable(shown, screenshots, width, dark):
    page = shown(width=width, dark=dark)
    press(page, "2 Gradients")
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    outside = page.evaluate(
        """() => [...document.querySelectorAll(".vblora-sub svg")].flatMap((svg) => {
          const edge = svg.getBoundingClientRect();
          return [...svg.querySelectorAll("text")].filter((text) => {
            const box = text.getBoundingClientRect();
            return box.left < edge.left - 1 || box.right > edge.right + 1
              || box.bottom > edge.bottom + 1;
          }).map((text) => text.textContent);
        })"""
    )
    assert outside == []
    page.screenshot(path=screenshots / f"sub-vector-{width}-{dark}.png", full_page=True)


def test_a_view_that_is_gone_listens_no_more(shown):
    page = shown()
    page.get_by_role("button", name="Run 30 steps").click()
    page.evaluate("window.leave()")
    assert page.evaluate("Object.values(window.model.listeners).flat().length") == 0
    phase = page.evaluate("model.get('phase')")
    page.wait_for_timeout(400)  # twice the time between two steps of a run
    assert page.evaluate("model.get('phase')") == phase
