"""ConfigExplorer under hand and keyboard: in a page that the real widget answers, and in a Lab."""

from __future__ import annotations

import math
import re

import pytest
from browser_lab import LONG, run_cell
from explorer_page import ExplorerPage
from torch import nn
from transformers import LlamaConfig, OPTConfig

from vblora_lab import PRESETS, VBLoRAConfig
from vblora_lab.widgets import ConfigExplorer

OPT_125M = OPTConfig()


@pytest.fixture
def open_explorer(browser):
    opened = []

    def open_it(model=OPT_125M, config=None, **options):
        opened.append(ExplorerPage(browser, ConfigExplorer(model, config), **options))
        return opened[-1]

    yield open_it
    for page in opened:
        page.context.close()
        assert page.errors == []


@pytest.fixture
def explorer(open_explorer):
    return open_explorer(config=PRESETS["basic"].config())


def overflows(page):
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


# ---- the form --------------------------------------------------------------------------------


def test_every_field_has_a_labelled_control_with_help(explorer):
    for name in VBLoRAConfig.__annotations__:
        controls = explorer.box(name).locator("input, select")
        assert controls.count() >= 1, name
    unnamed = explorer.page.evaluate(
        """() => [...document.querySelectorAll("input, select, button")].filter((e) =>
             !e.getAttribute("aria-label") && !e.labels?.length && !e.textContent.trim())
             .map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    missing = explorer.page.evaluate(
        """() => [...document.querySelectorAll("[aria-describedby], [aria-labelledby]")]
             .flatMap((e) => ["describedby", "labelledby"].map((a) => e.getAttribute(`aria-${a}`)))
             .filter((id) => id && !document.getElementById(id)?.textContent)"""
    )
    assert missing == []


def test_two_explorers_of_a_page_have_ids_and_radio_buttons_of_their_own(explorer):
    checked = explorer.page.locator("input[type=radio]:checked")
    alone = checked.count()
    explorer.page.evaluate(
        """async (source) => {  // a front end loads the file once for each widget
          const again = new Blob([source], { type: "text/javascript" });
          const { default: widget } = await import(URL.createObjectURL(again));
          const el = document.body.appendChild(document.createElement("div"));
          widget.render({ model: window.model, el });
        }""",
        explorer.widget._esm,
    )
    assert checked.count() == 2 * alone > 0
    twice = """() => {
      const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
      return ids.filter((id, i) => ids.indexOf(id) !== i);
    }"""
    assert explorer.page.evaluate(twice) == []


def test_an_answer_of_the_kernel_leaves_a_number_alone_that_is_half_typed(explorer):
    number = explorer.box("num_vectors").get_by_role("spinbutton")
    number.press("Control+a")
    for key in "1e3":
        explorer.page.keyboard.press(key)
        explorer.settle()
        explorer.page.evaluate("model.load({ view: model.get('view') })")
    assert number.input_value() == "1e3"
    assert explorer.widget.config.num_vectors == 1000
    number.press("Control+a")
    number.press("Delete")
    number.blur()
    assert number.input_value() == "1000"


def test_dragging_a_slider_moves_config_and_numbers(explorer):
    slider = explorer.slider("num_vectors")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    before = explorer.fact("trained parameters").inner_text()
    mouse = explorer.page.mouse
    mouse.move(box["x"] + box["width"] * 8 / 14, box["y"] + box["height"] / 2)
    mouse.down()
    for share in (0.6, 0.7, 0.8, 12 / 14):
        mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
    mouse.up()
    explorer.settle()
    config = explorer.widget.config
    assert 3000 <= config.num_vectors <= 6144  # 2^12 at 12 of 14 parts of the way
    assert explorer.fact("trained parameters").inner_text() != before
    plan = explorer.widget.plan
    assert explorer.fact("trained parameters").inner_text() == f"{plan.trained_parameters:,}"
    assert f"num_vectors={config.num_vectors}," in explorer.page.locator("pre").inner_text()
    assert slider.get_attribute("aria-valuetext") == str(config.num_vectors)


def test_arrow_keys_step_through_round_numbers_and_the_box_takes_any(explorer):
    slider = explorer.slider("r")
    slider.focus()
    for key, value in (("ArrowRight", 6), ("ArrowRight", 8), ("ArrowLeft", 6), ("Home", 1)):
        explorer.page.keyboard.press(key)
        explorer.settle()
        assert explorer.widget.config.r == value
    exact = explorer.box("r").locator("input[type=number]")
    exact.fill("11")
    explorer.settle()
    assert explorer.widget.config.r == 11
    assert slider.get_attribute("aria-valuetext") == "11"
    exact.fill("")  # nothing yet: the last value stays
    explorer.settle()
    assert explorer.widget.config.r == 11
    exact.blur()
    assert exact.input_value() == "11"


def test_names_are_searched_ticked_and_removed(explorer):
    box = explorer.box("target_modules")
    box.get_by_role("searchbox").fill("fc")
    options = box.locator(".vblora-options label")
    assert options.first.inner_text().split() == ["fc1", "×", "12"]
    box.get_by_label("fc1", exact=False).first.check()
    explorer.settle()
    assert explorer.widget.config.target_modules == {"q_proj", "v_proj", "fc1"}
    box.get_by_role("button", name="remove q_proj").click()
    explorer.settle()
    assert explorer.widget.config.target_modules == {"v_proj", "fc1"}
    box.get_by_role("searchbox").fill("layers.3.self_attn.k")
    box.get_by_label("model.decoder.layers.3.self_attn.k_proj").check()
    explorer.settle()
    assert "model.decoder.layers.3.self_attn.k_proj" in explorer.widget.config.target_modules
    assert explorer.widget.plan.fits


def test_an_expression_is_counted_live(explorer):
    box = explorer.box("target_modules")
    box.get_by_label("expression", exact=True).check(force=True)
    explorer.settle()
    text = box.locator("input[type=text]")
    assert text.input_value() == r".*\.(v_proj|q_proj)"  # what was adapted by names
    assert box.locator(".vblora-count").inner_text() == "matches 24 modules"
    text.fill(r".*\.layers\.[0-3]\.fc1")
    explorer.settle()
    assert box.locator(".vblora-count").inner_text() == "matches 4 modules"
    assert len(explorer.widget.plan.targets) == 4
    text.fill("(")
    explorer.settle()
    assert "is not a regular expression" in explorer.page.locator(".vblora-item").inner_text()
    assert "can't be meant" in explorer.page.locator(".vblora-verdict").inner_text()
    box.get_by_label("names", exact=True).check(force=True)
    explorer.settle()
    assert explorer.widget.config.target_modules == {"q_proj", "v_proj"}  # as they were


def test_layers_are_brushed_and_typed(explorer):
    strip = explorer.page.locator(".vblora-brush")
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    at = lambda layer: (box["x"] + box["width"] * (layer + 0.5) / 12, box["y"] + 8)  # noqa: E731
    explorer.page.mouse.move(*at(2))
    explorer.page.mouse.down()
    explorer.page.mouse.move(*at(5))
    explorer.page.mouse.up()
    explorer.settle()
    assert explorer.widget.config.layers_to_transform == [2, 3, 4, 5]
    assert len(explorer.widget.plan.targets) == 8
    explorer.page.keyboard.down("Control")
    explorer.page.mouse.click(*at(9))
    explorer.page.keyboard.up("Control")
    explorer.settle()
    assert explorer.widget.config.layers_to_transform == [2, 3, 4, 5, 9]
    explorer.page.get_by_label("to layer").fill("7")
    explorer.settle()
    assert explorer.widget.config.layers_to_transform == [2, 3, 4, 5, 6, 7]
    explorer.box("layers_pattern").get_by_role("checkbox").check()
    explorer.settle()
    assert explorer.widget.config.layers_pattern == "layers"
    explorer.page.get_by_role("button", name="every layer").click()
    explorer.settle()
    config = explorer.widget.config
    assert (config.layers_to_transform, config.layers_pattern) == (None, None)
    assert len(explorer.widget.plan.targets) == 24


def test_presets_toggles_and_choices(explorer):
    as_given, *chips = explorer.page.locator(".vblora-chip[aria-pressed]").all()
    for chip, preset in zip(chips, PRESETS.values(), strict=True):
        chip.click()
        explorer.settle()
        assert explorer.widget.config == preset.config()
        pressed = as_given if preset is PRESETS["basic"] else chip  # given was the same config
        assert pressed.get_attribute("aria-pressed") == "true"
    explorer.box("save_only_topk_weights").get_by_role("checkbox").check()
    explorer.box("fan_in_fan_out").get_by_role("checkbox").check()
    explorer.box("bias").get_by_label("vblora_only").check(force=True)
    explorer.box("task_type").get_by_role("combobox").select_option("SEQ_CLS")
    explorer.settle()
    config = explorer.widget.config
    assert config.save_only_topk_weights and config.fan_in_fan_out
    assert (config.bias, config.task_type) == ("vblora_only", "SEQ_CLS")


def test_a_config_set_in_python_moves_the_form(explorer):
    explorer.widget.config = VBLoRAConfig(r=12, target_modules=["fc2"], bias="all")
    explorer.page.evaluate(
        "(s) => window.model.load(s)",
        {name: getattr(explorer.widget, name) for name in ("fields", "view", "code")},
    )
    explorer.settle()
    assert explorer.box("r").locator("input[type=number]").input_value() == "12"
    assert explorer.box("bias").get_by_label("all", exact=True).is_checked()
    assert explorer.page.locator(".vblora-chosen").first.inner_text().split() == ["fc2", "✕"]


# ---- the answer ------------------------------------------------------------------------------


def test_use_this_value_settles_a_problem(open_explorer):
    explorer = open_explorer(
        config=VBLoRAConfig(
            num_vectors=64,
            vector_length=250,
            target_modules=["q_proj"],
            save_only_topk_weights=True,
        )
    )
    assert "doesn't divide" in explorer.page.locator(".vblora-item").inner_text()
    assert "vblora-refused" in explorer.box("vector_length").get_attribute("class")
    explorer.page.get_by_role("button", name="Use vector_length = 256").click()
    explorer.settle()
    assert explorer.widget.config.vector_length == 256
    assert explorer.page.locator(".vblora-item").count() == 0
    verdict = explorer.page.locator(".vblora-verdict")
    assert verdict.inner_text() == "✓ fits · adapts 12 modules"
    assert verdict.evaluate("e => e === document.activeElement")  # not lost with the button


def test_tiles_are_drawn_to_scale(explorer):
    """The pattern's period against the strip's length, in the modules' own numbers."""
    explorer.page.get_by_role("button", name="All linear layers").click()
    explorer.settle()
    choice = explorer.page.get_by_label("Modules whose cut is drawn")
    for cut in explorer.widget.view["cuts"]:
        choice.select_option(cut["name"])
        explorer.settle()
        for matrix, side, size in (("A", "width", cut["in"]), ("B", "height", cut["out"])):
            tile, strip = explorer.page.evaluate(
                """([matrix, side]) => {
                  const pattern = document.querySelector(`pattern[id$="-${matrix}"]`);
                  const strip = document.querySelector(`rect[fill="url(#${pattern.id})"]`);
                  return [pattern, strip].map((e) => Number(e.getAttribute(side)));
                }""",
                [matrix, side],
            )
            assert strip / tile == pytest.approx(size / 256)
        picture = explorer.page.locator(".vblora-cut-picture")
        assert f"{cut['tiles_A'][0]} × {cut['tiles_A'][1]}" in picture.get_attribute("aria-label")


def test_copying_takes_the_code_that_makes_this_config(explorer):
    explorer.slider("topk").focus()
    explorer.page.keyboard.press("ArrowRight")
    explorer.settle()
    explorer.page.get_by_role("button", name="Copy", exact=True).click()
    explorer.page.get_by_text("✓ copied").wait_for()
    explorer.page.evaluate("document.body.append(document.createElement('textarea'))")
    explorer.page.locator("textarea").focus()
    explorer.page.keyboard.press("Control+V")
    namespace: dict = {}
    exec(explorer.page.locator("textarea").input_value(), namespace)
    assert namespace["config"] == explorer.widget.config
    assert namespace["config"].topk == 3


def test_module_names_are_shown_and_never_run(open_explorer):
    hostile = "<img src=x onerror=alert(1)>"
    model = nn.Module()
    model.add_module(hostile, nn.Linear(16, 16))
    config = VBLoRAConfig(target_modules=[hostile, f"{hostile}2"], vector_length=5)
    explorer = open_explorer(model, config)
    ran = []
    explorer.page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    text = explorer.page.locator(".vblora-explorer").inner_text()
    assert text.count(hostile) >= 3
    assert explorer.page.locator("#widget img").count() == 0
    assert ran == []


def test_keys_stay_in_the_widget(explorer):
    explorer.page.evaluate("document.addEventListener('keydown', () => { window.leaked = true })")
    explorer.slider("r").focus()
    explorer.page.keyboard.press("ArrowRight")
    explorer.page.keyboard.press("d")
    assert explorer.page.evaluate("window.leaked") is None


def test_a_view_that_is_gone_listens_no_more(explorer):
    explorer.page.evaluate("window.leave()")
    assert explorer.page.evaluate("Object.values(window.model.listeners).flat().length") == 0


@pytest.mark.parametrize("width", [420, 760, 1180])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_every_page(open_explorer, screenshots, width, dark):
    config = PRESETS["first-layers"].config(vector_length=500 if width == 760 else 256)
    explorer = open_explorer(config=config, width=width, dark=dark)
    assert not overflows(explorer.page)
    clipped = explorer.page.evaluate(
        """() => [...document.querySelectorAll(".vblora-fact-number, .vblora-bar-text, button")]
             .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
             .map((e) => e.textContent)"""
    )
    assert clipped == []
    name = f"config-explorer-{width}-{'dark' if dark else 'light'}.png"
    explorer.page.screenshot(path=screenshots / name, full_page=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_readable(open_explorer, dark):
    """WCAG's contrast of at least 4.5 for all text, against the background it stands on."""
    explorer = open_explorer(config=PRESETS["basic"].config(vector_length=250), dark=dark)
    poor = explorer.page.evaluate(
        """() => {
          const parse = (c) => {
            const n = c.match(/[\\d.]+/g).map(Number);
            const scale = c.startsWith("color(") ? 255 : 1;
            return [n[0] * scale, n[1] * scale, n[2] * scale, n[3] ?? 1];
          };
          const light = (c) => c.slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const under = (e) => {
            for (; e; e = e.parentElement) {
              const c = parse(getComputedStyle(e).backgroundColor);
              if (c[3] > 0) return c;
            }
            return [255, 255, 255, 1];
          };
          const poor = [];
          for (const e of document.querySelectorAll(".vblora-explorer *")) {
            const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
            if (!own || e.closest("svg") || !e.clientWidth || e.disabled) continue;
            const [a, b] = [light(parse(getComputedStyle(e).color)), light(under(e))]
              .sort((x, y) => y - x);
            const contrast = (a + 0.05) / (b + 0.05);
            if (contrast < 4.5) poor.push([contrast, e.textContent.slice(0, 40)]);
          }
          return poor;
        }"""
    )
    assert poor == []


def test_a_model_of_70_billion_is_played_with(open_explorer):
    model = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8,
    )  # fmt: skip
    explorer = open_explorer(model, PRESETS["basic"].config(), width=900)
    explorer.slider("vector_length").focus()
    explorer.page.keyboard.press("ArrowRight")
    explorer.settle()
    assert explorer.widget.config.vector_length > 256
    assert explorer.fact("trained parameters").inner_text() == (
        f"{explorer.widget.plan.trained_parameters:,}"
    )
    assert not overflows(explorer.page)


# ---- a real JupyterLab -----------------------------------------------------------------------

CELL = """
from transformers import OPTConfig
from vblora_lab import ConfigExplorer, PRESETS
explorer = ConfigExplorer(OPTConfig(), PRESETS["basic"].config())
explorer
"""


def test_a_person_plays_in_jupyterlab(browser, lab, screenshots):
    lab.write("explore", CELL, "print(explorer.config.num_vectors, explorer.plan.sub_vectors)")
    page = lab.open(browser, "explore", viewport={"width": 1400, "height": 1000})
    run_cell(page)
    explorer = page.locator(".vblora-explorer")
    explorer.wait_for(timeout=LONG)
    number = explorer.locator(".vblora-fact-number").first
    assert number.inner_text() == "212,992"  # the bank, and 576 sub-vectors' 256 logits each

    slider = explorer.get_by_label("num_vectors, slider")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 8 / 14, box["y"] + box["height"] / 2)
    page.mouse.down()
    for share in range(8, 14):
        page.mouse.move(box["x"] + box["width"] * share / 13, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.get_by_text("num_vectors=16384,").wait_for()
    assert number.inner_text() == f"{16384 * 256 + 576 * 16384:,}"

    # Notebook shortcuts must not fire while a person types in the form.
    exact = explorer.get_by_label("num_vectors", exact=True).first
    exact.fill("500")
    page.get_by_text("num_vectors=500,").wait_for()
    page.screenshot(path=screenshots / "config-explorer-lab.png")
    run_cell(page, 1)
    page.locator(".jp-OutputArea-output pre", has_text="500 576").wait_for()

    page.get_by_role("menuitem", name="Settings").click()
    page.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.locator(".lm-Menu-item", has_text=re.compile("^JupyterLab Dark$")).click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    explorer.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "config-explorer-lab-dark.png")
    page.context.close()


def test_lengths_compare_amounts_and_a_log_axis_has_dots(explorer):
    """A bar is as long as its value; on a log axis, where it can't be, there are dots."""
    page = explorer.page
    amounts = explorer.widget.view["stored"][:-1]
    widths = page.locator(".vblora-bars").nth(1).locator("i").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().width)"
    )  # fmt: skip
    assert len(widths) == len(amounts) + 1, "the base weights, which run off the axis, come last"
    for amount, width in zip(amounts, widths, strict=False):
        assert width / widths[0] == pytest.approx(amount["value"] / amounts[0]["value"], rel=0.02)
    page.locator(".vblora-segments label", has_text="log").click()
    explorer.settle()
    places = page.locator(".vblora-bars").nth(1).locator("s").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().left)"
    )  # fmt: skip
    assert page.locator(".vblora-bars i").count() == 0
    logs = [math.log(bar["value"]) for bar in explorer.widget.view["stored"]]
    for i in range(1, len(logs) - 1):
        part = (places[i] - places[0]) / (places[-1] - places[0])
        assert part == pytest.approx((logs[i] - logs[0]) / (logs[-1] - logs[0]), abs=0.01)
