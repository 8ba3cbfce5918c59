"""The heatmap in a plain page: what hand and keyboard get, against the selection itself."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from browser_lab import picture

from vblora_lab.inspection.chance import module_use, notice
from vblora_lab.inspection.rows import row_groups
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.widgets import BankHeatmap


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


def rows_of(shown=None, **options) -> BankHeatmap:
    """A map in which each row is a sub-vector."""
    widget = BankHeatmap(shown, **options)
    widget.view = "weights"
    return widget


def sentence(selection, row):
    """What the read-out has to say of a row, written here independently."""
    (a, b), (v, w) = selection.indices[row], selection.weights[row]
    label = selection.sub_vectors.label(row)
    entropy = -(v * math.log(v) + w * math.log(w))
    return (
        f"{label}: {v:.3f} of bank vector {a} + {w:.3f} of bank vector {b}; "
        f"entropy {entropy:.3f} nats"
    )


def test_arrow_keys_read_every_cell_out(open_page):
    selection = selection_of()
    page = open_page(rows_of(selection))
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
    page = open_page(rows_of(selection))
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
    page = open_page(rows_of(selection))
    page.press("ArrowDown", *["ArrowDown"] * 4, "Enter")
    assert page.get("pinned_row") == 4
    page.canvas.evaluate("canvas => canvas.blur()")
    page.settle()
    assert page.readout == "pinned: " + sentence(selection, 4)
    later = selection_of(seed=1)
    widget = rows_of(later)
    widget.pinned_row = 4
    page.update(widget)
    assert page.readout == "pinned: " + sentence(later, 4)
    assert page.page.locator(".vblora-readout").get_attribute("aria-live") == "off"
    page.press("Escape")
    assert page.get("pinned_row") == -1


def test_a_click_on_a_bar_lights_all_that_share_the_vector(open_page):
    selection = selection_of()
    page = open_page(rows_of(selection))
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
    page = open_page(rows_of(selection))
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
    page = open_page(rows_of(selection))
    assert page.colours()["count"] > 30
    size = page.canvas.bounding_box()
    for x, y in ((0.4, 0.3), (0.6, 0.5), (0.8, 0.7)):
        page.move(size["width"] * x, size["height"] * y)
        label = page.readout.split(": ")[0]
        rows = [selection.sub_vectors.label(i) for i in range(3456)]
        assert page.readout == sentence(selection, rows.index(label))  # snapped to a chosen cell


@pytest.mark.parametrize("scale", [1, 2])
def test_the_canvas_has_the_pixels_of_the_screen(open_page, scale):
    page = open_page(rows_of(selection_of()), scale=scale, width=700)
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
        page = open_page(rows_of(selection_of()), dark=dark)
        name = "heatmap-dark.png" if dark else "heatmap-light.png"
        pictures.append(page.canvas.screenshot(path=screenshots / name))
    assert pictures[0] != pictures[1]


def test_an_empty_heatmap_takes_keys_and_pointers_without_error(open_page):
    page = open_page(rows_of())
    page.press("ArrowDown", "Enter", "z", " ")
    page.click(200, 200)
    assert page.readout == "" and page.tip is None
    assert page.get("pinned_row") == -1


def test_a_view_that_is_gone_listens_no_more(open_page):
    page = open_page(rows_of(selection_of()))
    page.page.evaluate("window.leave(); document.getElementById('widget').remove()")
    page.page.evaluate("window.model.set('pinned_row', 3)")
    left = page.page.evaluate("Object.values(window.model.listeners).flat().length")
    assert left == 0


# --- orders, zoom


@pytest.mark.parametrize("by", ["module", "matrix", "strongest", "entropy", "similarity"])
def test_rows_stand_in_the_order_that_was_chosen(open_page, by):
    selection = selection_of()
    widget = rows_of(selection, compact=True)
    widget.rows_by = by
    page = open_page(widget)
    page.press("ArrowDown")
    order = selection.row_order(by)
    assert page.readout.startswith(sentence(selection, order[0]))
    page.press("PageDown", "PageDown", "ArrowDown")
    assert page.readout.startswith(sentence(selection, order[21]))
    assert page.page.get_by_label("rows by").input_value() == by


def test_columns_by_usage_put_the_most_used_first(open_page):
    selection = selection_of()
    widget = rows_of(selection)
    widget.columns_by = "usage"
    page = open_page(widget)
    size = page.canvas.bounding_box()
    box = page.page.evaluate("document.querySelector('.vblora-stage').clientWidth")
    assert box == size["width"]
    page.press("ArrowDown", "Home", " ")
    assert page.get("lit_vector") == int(np.argsort(-selection.usage(), kind="stable")[0])


def test_choosing_an_order_asks_the_kernel(open_page):
    page = open_page(rows_of(selection_of()))
    page.page.get_by_label("rows by").select_option("similarity")
    page.page.get_by_label("columns by").select_option("usage")
    assert (page.get("rows_by"), page.get("columns_by")) == ("similarity", "usage")


def test_plus_and_minus_zoom_about_the_cursor(open_page):
    selection = selection_of()
    page = open_page(rows_of(selection))
    page.press("ArrowDown", "PageDown", "PageDown", "+", "+", *["PageUp"] * 6)
    assert page.readout.startswith(sentence(selection, 15))  # 12 rows about row 20 of 48
    assert page.page.get_by_role("button", name="All rows").is_visible()
    page.press("-", "-", *["PageUp"] * 6)
    assert page.readout.startswith(sentence(selection, 0))
    assert not page.page.get_by_role("button", name="All rows").is_visible()


# --- a trace


def trace_of(count=5):
    """A run: recorded selections, as a Trace has them. Some sub-vectors keep what they chose."""
    first = selection_of()
    pairs = [(0, first)]
    for step in range(1, count):
        other, before = selection_of(seed=step), pairs[-1][1]
        stays = (np.arange(48) % 4 != 0)[:, None]
        pairs.append(
            (
                10 * step,
                Selection(
                    first.sub_vectors, 32, np.where(stays, before.indices, other.indices),
                    np.where(stays, before.weights, other.weights),
                ),
            )
        )  # fmt: skip
    return SimpleNamespace(selections=tuple(pairs))


def test_the_slider_goes_through_the_steps(open_page):
    trace = trace_of()
    page = open_page(rows_of(trace))
    slider = page.page.get_by_role("slider", name="training step")
    assert slider.get_attribute("aria-valuetext") == "step 40"
    page.press("ArrowDown")
    assert page.readout.startswith(sentence(trace.selections[-1][1], 0))
    pictures = {page.canvas.evaluate("c => c.toDataURL()")}
    slider.focus()
    for frame in (3, 2, 1, 0):
        page.page.keyboard.press("ArrowLeft")
        page.settle()
        assert page.get("frame") == frame
        pictures.add(page.canvas.evaluate("c => c.toDataURL()"))
        step, selection = trace.selections[frame]
        told = page.page.locator(".vblora-scrub-text").inner_text()
        assert told.startswith(f"step {step} of 40")
        if frame:
            churn = selection.churn(trace.selections[frame - 1][1])
            assert f"{churn:.0%} of the sets changed since step {step - 10}" in told
        page.press("ArrowDown")
        assert page.readout.startswith(sentence(selection, 0))
        slider.focus()
    assert len(pictures) == 5


def test_play_runs_to_the_end_and_stops(open_page):
    page = open_page(rows_of(trace_of(4)))
    page.page.get_by_role("button", name="Play").click()
    page.page.wait_for_function("window.model.get('frame') < 3")
    page.page.wait_for_function("window.model.get('frame') === 3")
    page.page.get_by_role("button", name="Play").wait_for()


def test_first_against_last_shows_three_kinds_of_cells(open_page):
    trace = trace_of()
    widget = rows_of(trace)
    page = open_page(widget)
    weights = page.canvas.evaluate("c => c.toDataURL()")
    assert not page.page.get_by_text("first choice only").is_visible()
    page.page.get_by_label("show", exact=True).select_option("footprint")
    page.settle()
    assert page.page.get_by_text("first choice only").is_visible()
    assert page.canvas.evaluate("c => c.toDataURL()") != weights
    page.press("ArrowDown")
    first = trace.selections[0][1].indices[0]
    assert f"at step 0: bank vectors {first[0]}, {first[1]}" in page.tip


def test_a_selection_alone_has_no_slider(open_page):
    page = open_page(rows_of(selection_of()))
    assert not page.page.get_by_role("slider", name="training step").is_visible()
    choices = page.page.get_by_label("show", exact=True).locator("option")
    assert choices.all_inner_texts() == ["modules", "sub-vectors"]


# --- linked views, table, bench


def test_a_click_on_the_usage_view_lights_that_vector(open_page):
    selection = selection_of()
    page = open_page(rows_of(selection), width=1200)
    drawing = page.page.locator(".vblora-view-usage svg")
    box = drawing.bounding_box()
    drawing.click(position={"x": 40, "y": box["height"] - 60})  # the first from the left
    page.settle()
    most = int(selection.usage().argmax())
    assert page.get("lit_vector") == most
    rows = len(selection.sharers(most))
    title = page.page.locator(".vblora-view-mixture h4").inner_text()
    assert title == f"Bank vector {most} is in {rows} mixtures"


def test_pointing_at_the_sharing_of_layers_reads_its_numbers(open_page):
    selection = selection_of()
    page = open_page(rows_of(selection), width=1200)
    view = page.page.locator(".vblora-view-sharing")
    drawing = view.locator("svg")
    drawing.hover(position={"x": 38 + 176 * 5 / 6, "y": 20 + 176 / 6})  # first row, last column
    share = selection.sharing()[0, 2]
    expected = f"layer 0 and layer 2: {share:.0%} from the same bank vectors"
    assert view.locator(".vblora-caption").inner_text() == expected


def test_a_pinned_row_shows_its_bank_vectors_as_bars(open_page):
    selection = selection_of()
    widget = rows_of(selection)
    widget.pinned_row = 7
    page = open_page(widget)
    shares = page.page.locator(".vblora-share")
    assert shares.count() == 2
    for i in range(2):
        vector, weight = selection.indices[7, i], selection.weights[7, i]
        assert f"bank vector {vector}" in shares.nth(i).inner_text()
        assert f"{weight:.3f}" in shares.nth(i).inner_text()
        track = shares.nth(i).locator(".vblora-share-track").bounding_box()["width"]
        bar = shares.nth(i).locator(".vblora-share-bar").bounding_box()["width"]
        assert abs(bar / track - weight) < 0.01
    shares.nth(1).get_by_role("button").click()
    assert page.get("lit_vector") == selection.indices[7, 1]


def test_compact_is_the_map_alone(open_page):
    page = open_page(rows_of(selection_of(), compact=True))
    assert not page.page.locator(".vblora-linked").is_visible()
    assert page.page.get_by_label("rows by").is_visible()


def test_the_table_says_what_the_map_shows(open_page):
    selection = selection_of()
    page = open_page(rows_of(selection))
    toggle = page.page.get_by_role("button", name="Table")
    toggle.click()
    assert toggle.get_attribute("aria-expanded") == "true"
    table = page.page.get_by_role("table")
    assert table.locator("caption").inner_text() == "Sub-vectors 1 to 20 of 48, by layer"
    views = page.page.locator(".vblora-linked")
    assert page.canvas.bounding_box()["y"] < table.bounding_box()["y"] < views.bounding_box()["y"]
    page.page.get_by_role("button", name="Next").click()
    cells = table.locator("tbody tr").nth(3).locator("th, td").all_inner_texts()
    (a, b), (v, w) = selection.indices[23], selection.weights[23]
    assert cells[0] == "23" and cells[1] == "layer 1 · self_attn.q"
    assert cells[5] == f"{v:.3f} of {a} + {w:.3f} of {b}"
    page.page.get_by_role("button", name="pin sub-vector 23").click()
    assert page.get("pinned_row") == 23


def test_a_button_of_the_table_keeps_the_focus_when_it_is_pressed(open_page):
    page = open_page(rows_of(selection_of()))
    page.page.get_by_role("button", name="Table").click()
    page.page.get_by_role("button", name="Next").focus()
    page.page.keyboard.press("Enter")
    page.settle()
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Enter")
    page.settle()
    assert page.get("pinned_row") == 20
    pin = page.page.get_by_role("button", name="pin sub-vector 20")
    assert pin.evaluate("button => button === document.activeElement")


def test_a_long_name_is_cut_off_and_leaves_room_for_the_cells(open_page):
    plain = selection_of(layers=2)
    within = "encoder.very_long_name_of_a_block." * 4
    names = tuple(f"layers.{i}.{within}{m}" for i in range(2) for m in ("query", "value"))
    parts = (getattr(plain.sub_vectors, n) for n in ("module", "layer", *AFTER_LAYER))
    selection = Selection(SubVectors(names, *parts), 32, plain.indices, plain.weights)
    page = open_page(rows_of(selection), width=700)
    size = page.canvas.bounding_box()
    columns = set()
    for share in (0.7, 0.8, 0.9):
        page.move(size["width"] * share, 20)
        columns.add(page.readout.split(":")[0])
    assert len(columns) == 3
    page.press("ArrowDown")
    assert within in page.readout


HOSTILE = "layers.0.<img src=x onerror=window.harm=1>"


def test_names_are_shown_and_never_run(open_page, tmp_path):
    names = (HOSTILE, "layers.1.<script>window.harm=2</script>")
    plain = selection_of(layers=2)
    module = (plain.sub_vectors.module >= 2).astype(np.int32)
    rows = SubVectors(names, module, module, *(getattr(plain.sub_vectors, n) for n in AFTER_LAYER))
    widget = rows_of(Selection(rows, 32, plain.indices, plain.weights))
    page = open_page(widget)
    page.press("ArrowDown", "Enter")
    page.page.get_by_role("button", name="Table").click()
    assert "<img src=x" in page.readout
    assert page.page.evaluate("window.harm") is None
    stored = page.page.context.new_page()
    stored.goto(widget.to_html(tmp_path / "map.html", title=HOSTILE).as_uri())
    stored.locator(".vblora-stage canvas").wait_for()
    assert stored.title() == HOSTILE and stored.evaluate("window.harm") is None


AFTER_LAYER = ("matrix", "rank", "tile")


def test_the_bench_asks_and_shows_what_came_back(open_page):
    selection = selection_of()
    widget = rows_of(selection)
    widget.bench = {"busy": False, "error": "", "changes": []}
    page = open_page(widget)
    bench = page.page.locator(".vblora-bench")
    swap = bench.locator("fieldset", has_text="Swap")
    assert swap.get_by_role("button").is_disabled()  # until a row is pinned
    page.press("ArrowDown", "ArrowDown", "Enter")
    for no_vector in ("", "1.5", "32"):
        swap.get_by_label("take").fill(no_vector)
        swap.get_by_role("button").click()
    assert page.page.evaluate("window.model.sent") is None
    swap.get_by_label("take").fill("9")
    swap.get_by_role("button").click()
    weight = bench.locator("fieldset", has_text="weight")
    weight.get_by_role("slider").fill("0.25")
    weight.get_by_role("button").click()
    off = bench.locator("fieldset", has_text="everywhere")
    off.get_by_label("bank vector").fill("4")
    off.get_by_label("and").select_option("next")
    off.get_by_role("button").click()
    chosen = int(min(selection.indices[1]))
    assert page.page.evaluate("window.model.sent") == [
        {"bench": "swap", "row": 1, "old": chosen, "new": 9},
        {"bench": "reweight", "row": 1, "vector": chosen, "weight": 0.25},
        {"bench": "switch_off", "vector": 4, "next_best": True},
    ]
    outcome = {"prompt": "name[<b>X</b>]", "text": "It is cheap.", "mistakes": []}
    widget.bench = {
        "busy": False, "error": "", "changes": ["bank vector 4 is switched off"],
        "before": {**outcome, "loss": 1.5},
        "after": {**outcome, "loss": 1.75, "text": "It is dear.", "mistakes": ["wrong price"]},
    }  # fmt: skip
    page.update(widget)
    told = bench.inner_text()
    for text in ("1.5000 → 1.7500", "▲ 0.2500 worse", "name[<b>X</b>]", "✕ wrong price"):
        assert text in told
    assert bench.locator("mark").all_inner_texts() == ["cheap.", "dear."]
    bench.get_by_role("button", name="Undo all").click()
    assert page.page.evaluate("window.model.sent.at(-1)") == {"bench": "restore"}


# --- a page of its own


@pytest.fixture
def stored(browser, tmp_path):
    """A page that `to_html` wrote, opened from disk with the network cut off."""
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
    errors = []

    def open_file(widget):
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: errors.append(r.url) if r.url.startswith("http") else None)
        page.goto(widget.to_html(tmp_path / "map.html").as_uri())
        page.locator(".vblora-stage canvas").wait_for()
        # Before the first frame is drawn a key moves nothing; then the read-out says something.
        page.wait_for_function("document.querySelector('.vblora-readout').textContent")
        return page

    yield open_file
    context.close()
    assert errors == []


def test_a_stored_page_hovers_scrubs_sorts_and_pins(stored):
    trace = trace_of()
    page = stored(rows_of(trace))
    readout = page.locator(".vblora-readout")
    page.locator(".vblora-stage canvas").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('.vblora-readout').textContent.includes('rank')")
    last = trace.selections[-1][1]
    assert readout.inner_text().startswith(sentence(last, 0))
    page.get_by_label("rows by").select_option("matrix")
    page.locator(".vblora-stage canvas").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    for _ in range(5):
        page.keyboard.press("PageDown")
    row = int(last.row_order("matrix")[-1])
    expected = json.dumps(sentence(last, row))
    page.wait_for_function(
        f"document.querySelector('.vblora-readout').textContent.startsWith({expected})"
    )
    assert row_groups(last.sub_vectors, "matrix")[0].text == "A"
    page.keyboard.press("Enter")
    page.get_by_text(f"Sub-vector {row} is a mixture").wait_for()
    slider = page.get_by_role("slider", name="training step")
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('.vblora-scrub-text').textContent[5] === '0'")
    first = json.dumps("pinned: " + sentence(trace.selections[0][1], row))
    page.wait_for_function(f"document.querySelector('.vblora-readout').textContent === {first}")


def test_a_stored_page_lights_what_is_pinned_now_and_not_what_was_when_it_was_stored(stored):
    selection = selection_of()
    widget = rows_of(selection)
    says = "document.querySelector('.vblora-readout').textContent"
    told = {1: "pinned: " + sentence(selection, 1)}

    def drawn(page, row):
        """The picture once the read-out tells that it shows `row`: both change in one frame."""
        page.locator(".vblora-stage canvas").evaluate("canvas => canvas.blur()")
        page.wait_for_function(f"words => {says} === words", arg=told[row])
        return picture(page.locator(".vblora-stage canvas"))

    expected = {}
    for row in (-1, 1):
        widget.pinned_row = row
        page = stored(widget)
        told.setdefault(row, page.evaluate(says))
        expected[row] = drawn(page, row)
    assert not told[-1].startswith("pinned")
    widget.pinned_row = 20
    page = stored(widget)
    for row in (1, -1):
        page.locator(".vblora-stage canvas").focus()
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        assert drawn(page, row) == expected[row]


def test_a_stored_page_in_another_tells_its_height_and_is_as_dark_as_that_one(browser, tmp_path):
    rows_of(selection_of()).to_html(tmp_path / "map.html")
    around = """<iframe src="map.html" width="900" height="200"></iframe><script>
      addEventListener("message", ({ data }) => { window.told = data.vbloraHeight; });
    </script>"""
    (tmp_path / "around.html").write_text(around)
    context = browser.new_context(offline=True, color_scheme="light")
    page = context.new_page()
    page.goto((tmp_path / "around.html").as_uri())
    page.wait_for_function("window.told > 0")
    inside = page.frame_locator("iframe").locator("body")
    box = inside.bounding_box()
    assert abs(page.evaluate("window.told") - box["height"] - 48) < 2 and box["height"] > 300
    light = inside.evaluate("body => getComputedStyle(body).backgroundColor")
    page.evaluate("frames[0].postMessage('of another kind', '*')")
    page.evaluate("frames[0].postMessage({ vbloraDark: true }, '*')")
    page.frame_locator("iframe").locator("[data-jp-theme-light=false]").wait_for()
    dark = inside.evaluate("body => getComputedStyle(body).backgroundColor")
    assert (light, dark) == ("rgba(0, 0, 0, 0)", "rgb(21, 25, 30)")
    context.close()


def test_a_stored_page_has_a_picture_for_readers_without_scripts(browser, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(rows_of(selection_of()).to_html(tmp_path / "map.html").as_uri())
    assert page.get_by_role("img").bounding_box()["width"] > 300
    context.close()


# --- modules, beside chance


def modules_page(open_page, selection, start=None, **options):
    """A map of modules; `start` was shown before."""
    widget = BankHeatmap(start or selection, **options)
    widget.update(selection)
    return open_page(widget, width=1100)


def told_of_module(use, module, column, selection, start=None):
    """What the read-out has to say of a cell, from the arrays of `module_use`."""
    mine = selection.sub_vectors.module == module
    mixing = (selection.indices[mine] == column).any(axis=1).sum()
    text = (
        f"{use.names[module]} takes {use.weights[module, column]:.2f} of bank vector {column}, by "
        f"chance {use.expected[module]:.2f} ± {use.spread[module]:.2f}; {mixing} of {mine.sum()} "
        "sub-vectors mix it"
    )
    if start is not None:
        text += f"; at the start {module_use(start).weights[module, column]:.2f}"
    return text


def test_a_map_opens_on_modules_and_says_what_to_notice(open_page):
    selection = selection_of()
    page = open_page(BankHeatmap(selection))
    told = notice(selection)
    assert page.page.locator(".vblora-notice").inner_text() == f"{told.headline} {told.details}"
    assert page.page.locator(".vblora-chart-title").inner_text().endswith("than chance would?")
    later = selection_of(seed=1)
    widget = BankHeatmap(selection)
    widget.update(later)
    page.update(widget)
    told = notice(later, start=selection)
    assert page.page.locator(".vblora-notice").inner_text() == f"{told.headline} {told.details}"
    assert "Kept since the start" in told.details


@pytest.mark.parametrize("by", ["layer", "module"])
def test_every_cell_of_the_modules_is_read_out_beside_chance(open_page, by):
    start, selection = selection_of(), selection_of(seed=1)
    page = modules_page(open_page, selection, start, rows_by=by)
    use = module_use(selection)
    order = list(dict.fromkeys(selection.sub_vectors.module[selection.row_order(by)].tolist()))
    page.press("ArrowDown")
    for place in range(3):
        expected = told_of_module(use, order[place], place, selection, start)
        assert page.readout == expected
        page.press("ArrowDown", "ArrowRight")
    page.press("Home", *["PageUp"] * 2, "Control+ArrowRight")
    outstanding = np.flatnonzero(use.stands_out[order[0]])
    column = int(outstanding[outstanding > 0][0]) if (outstanding > 0).any() else 0
    assert page.readout == told_of_module(use, order[0], column, selection, start)


def test_a_click_opens_a_module_and_there_are_ways_back(open_page):
    selection = selection_of()
    page = modules_page(open_page, selection)
    size = page.canvas.bounding_box()
    back = page.page.get_by_role("button", name="All modules")
    assert not back.is_visible()
    page.click(size["width"] * 0.6, 54 + (size["height"] - 88) * 2.5 / 6)  # the third of six rows
    assert page.get("opened") == 2
    assert page.page.locator(".vblora-notice b").inner_text() == (
        "layer 1 · self_attn.q: 8 sub-vectors, each mixes 2 bank vectors."
    )
    page.press(*["PageUp"] * 2, "Home")
    assert page.readout.startswith(sentence(selection, 16))
    page.press(*["PageDown"] * 9)
    assert page.readout.startswith(sentence(selection, 23))
    page.press("Enter")
    assert page.get("pinned_row") == 23
    back.click()
    page.settle()
    assert page.get("opened") == -1 and not back.is_visible()
    for leave in ("Backspace", "Escape"):
        page.press("ArrowDown", "Enter")
        assert page.get("opened") >= 0
        page.press(leave)
        assert page.get("opened") == -1
    assert page.page.locator(".vblora-chart-title").inner_text().endswith("than chance would?")


def test_what_is_left_of_the_start_is_marked(open_page):
    start, selection = selection_of(), selection_of(seed=1)
    same = modules_page(open_page, start)
    assert not same.page.get_by_text("not at the start").is_visible()
    page = modules_page(open_page, selection, start)
    assert page.page.get_by_text("not at the start").is_visible()
    page.press("ArrowDown", "Enter")
    for text in ("at the start only", "kept since the start"):
        assert page.page.get_by_text(text, exact=True).is_visible()
    kept = page.canvas.evaluate("c => c.toDataURL()")
    page.page.evaluate("window.model.set('start_indices', window.model.get('indices'))")
    page.settle()
    assert page.canvas.evaluate("c => c.toDataURL()") != kept


def test_an_order_without_modules_shows_sub_vectors_and_back(open_page):
    page = modules_page(open_page, selection_of())
    show, rows = (page.page.get_by_label(text, exact=True) for text in ("show", "rows by"))
    rows.select_option("entropy")
    page.settle()
    assert show.input_value() == "weights"
    show.select_option("modules")
    page.settle()
    assert (show.input_value(), rows.input_value()) == ("modules", "layer")


def test_the_table_of_modules_lists_what_stands_out(open_page):
    plain = selection_of()
    indices = plain.indices.copy()
    indices[:8, 0] = np.where(indices[:8, 1] == 9, indices[:8, 0], 9)  # the first module wants 9
    selection = Selection(plain.sub_vectors, 32, indices, plain.weights)
    page = modules_page(open_page, selection, start=plain)
    page.page.get_by_role("button", name="Table").click()
    use = module_use(selection)
    count = int(use.stands_out.sum())
    table = page.page.get_by_role("table")
    assert (
        table.locator("caption").inner_text() == f"Cells 1 to {count} of the {count} that stand out"
    )
    module, column = np.unravel_index(use.excess.argmax(), use.excess.shape)
    assert (module, column) == (0, 9)
    assert table.locator("tbody tr").first.locator("th, td").all_inner_texts() == [
        use.names[0], "9", f"{use.weights[0, 9]:.2f}", f"{use.expected[0]:.2f}",
        f"{use.excess[0, 9]:.1f}", f"{module_use(plain).weights[0, 9]:.2f}",
    ]  # fmt: skip
    page.page.get_by_role("button", name=f"open {use.names[0]}").first.click()
    assert page.get("opened") == 0


def test_a_large_model_opens_on_its_layers(open_page):
    selection = selection_of(layers=40, rows_each=4)  # 80 modules
    page = modules_page(open_page, selection)
    page.press("ArrowDown", "ArrowDown")
    assert page.readout.startswith("layer 1 takes ")
    page.press("Enter", *["PageUp"] * 2, "Home")
    assert page.readout.startswith(sentence(selection, 8))


def test_a_stored_page_opens_modules_and_scrubs_what_it_says(stored):
    trace = trace_of()
    page = stored(BankHeatmap(trace))
    said = page.locator(".vblora-notice")
    first, last = trace.selections[0][1], trace.selections[-1][1]
    assert said.inner_text() == f"{notice(last, first).headline} {notice(last, first).details}"
    page.get_by_role("slider", name="training step").focus()
    page.keyboard.press("Home")
    page.wait_for_function("!document.querySelector('.vblora-notice').textContent.includes('Kept')")
    assert said.inner_text() == f"{notice(first).headline} {notice(first).details}"
    page.locator(".vblora-stage canvas").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="All modules").wait_for()
