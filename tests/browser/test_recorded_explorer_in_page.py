"""The explorer's page without a kernel: it looks up what `plan` says, under hand and keyboard."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import pytest
from offline import is_dark, open_file, overflows
from transformers import OPTConfig

from vblora_lab import ConfigExplorer, VBLoRAConfig, plan
from vblora_lab.bases import skeleton_of
from vblora_lab.errors import ConfigError
from vblora_lab.tables import readable
from vblora_lab.widgets._source import source
from vblora_lab.widgets.config_explorer.page import page as page_of
from vblora_lab.widgets.config_explorer.page import script
from vblora_lab.widgets.config_explorer.recording import packed, record, shown_for, usual_values

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import record_plans

ALL_LINEAR = ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"]
VALUES = {
    "r": [1, 4],
    "num_vectors": [8, 64],
    "vector_length": [16, 32, 100],
    "topk": [2, 16],  # with 8 vectors that can't be meant
    "target_modules": [["q_proj", "v_proj"], ALL_LINEAR],
    "save_only_topk_weights": [False, True],
}


def config_of(**changes):
    fields = {
        "r": 4,
        "num_vectors": 64,
        "vector_length": 32,
        "target_modules": ["q_proj", "v_proj"],
    }
    return VBLoRAConfig(
        **{**fields, "save_only_topk_weights": True, "task_type": "CAUSAL_LM"} | changes
    )


def small(layers):
    return skeleton_of(
        OPTConfig(
            vocab_size=64, hidden_size=64, ffn_dim=128, num_hidden_layers=layers,
            num_attention_heads=2, word_embed_proj_dim=64,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def models():
    return {"two": small(2), "three": small(3)}


@pytest.fixture(scope="module")
def recordings(models):
    return {name: packed(record(model, config_of(), VALUES)) for name, model in models.items()}


@pytest.fixture(scope="module")
def text(recordings):
    return page_of("Two models", recordings, b"")


@pytest.fixture
def opened(browser, text, tmp_path):
    pages = []

    def open_it(text=text, **options):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        pages.append(open_file(browser, path, **options))
        return pages[-1]

    yield open_it
    for page in pages:
        page.context.close()
        assert page.wrong == []


LOOK_UP = """async ([source, recording, choices]) => {
  const script = `${source}; export { RecordedPlans, unpacked };`;
  const { RecordedPlans, unpacked } = await import(URL.createObjectURL(
    new Blob([script], { type: "text/javascript" })));
  const recorded = await unpacked(recording);
  return choices.map((changes) => {
    const plans = new RecordedPlans(recorded, { ...recorded.fields, ...changes });
    return { view: plans.get("view"), code: plans.get("code") };
  });
}"""


def looked_up(browser, recording, choices):
    """What the page's own script makes of a packed recording."""
    page = browser.new_page()
    shown = page.evaluate(
        LOOK_UP, [source("stored_model.js") + script("recorded"), recording, choices]
    )
    page.close()
    return shown


def assert_as_planned(browser, recording, values, model, config, count):
    rng = random.Random(0)
    choices = [{name: rng.choice(of) for name, of in values.items()} for _ in range(count)]
    for changes, shown in zip(choices, looked_up(browser, recording, choices), strict=True):
        expected = json.loads(json.dumps(shown_for(model, config, changes)))
        if error := expected["view"]["error"]:
            assert shown["view"]["error"] == error
            continue
        for item in (*expected["view"]["problems"], *expected["view"]["cautions"]):
            if item["value"] not in values.get(item["field"], ()):
                item["label"] = ""  # a value that the page can't step to isn't offered
        assert shown["view"] == expected["view"], changes
        assert shown["code"].splitlines() == expected["code"], changes


def test_what_is_recorded_is_what_plan_says(browser, models, recordings):
    for name, model in models.items():
        assert_as_planned(browser, recordings[name], VALUES, model, config_of(), count=40)


@pytest.mark.parametrize("name", record_plans.MODELS)
def test_the_plans_of_the_site_are_what_plan_says_today(browser, name):
    """Otherwise: python tools/record_plans.py."""
    make, bank = record_plans.MODELS[name]
    model, config = make(), record_plans.config_of(bank)
    recording = json.loads(record_plans.PLANS.read_text(encoding="utf-8"))[name]
    values = usual_values(model, config)
    assert math.prod(map(len, values.values())) > 1000
    assert_as_planned(browser, recording, values, model, config, count=12)


# ---- under hand and keyboard -------------------------------------------------------------------


def fact(page, name):
    return page.locator(".vblora-fact", has_text=name).locator(".vblora-fact-number")


def test_controls_step_through_recorded_values_alone(opened, models):
    page = opened()
    assert "step through 96 configs" in page.locator(".vblora-recorded").inner_text()
    box = page.get_by_label("num_vectors", exact=True)
    assert box.get_attribute("readonly") is not None and box.input_value() == "64"
    slider = page.get_by_role("slider", name="num_vectors")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expected = plan(models["two"], config_of(num_vectors=8))
    number = f"{expected.trained_parameters:,}"
    page.locator(".vblora-fact-number", has_text=number).first.wait_for()
    assert slider.get_attribute("aria-valuetext") == box.input_value() == "8"
    page.keyboard.press("ArrowLeft")  # there is none below
    assert box.input_value() == "8"
    slider.fill("700")  # a drag to somewhere between
    assert box.input_value() == "64"
    page.locator("pre.vblora-code", has_text="num_vectors=64").wait_for()
    assert fact(page, "stored adapter").inner_text() == readable(
        plan(models["two"], config_of()).stored_bytes
    )
    assert "num_vectors=64" in page.locator("pre.vblora-code").inner_text()


def test_another_model_keeps_what_was_chosen(opened, models):
    page = opened()
    page.get_by_text("all linear", exact=True).click()
    page.get_by_role("button", name="three").focus()
    page.keyboard.press("Enter")
    page.locator('[aria-pressed="true"]', has_text="three").wait_for()
    expected = plan(models["three"], config_of(target_modules=ALL_LINEAR))
    assert fact(page, "sub-vectors").inner_text() == f"{expected.sub_vectors:,}"
    assert page.get_by_label("all linear").is_checked()
    focused = page.evaluate("document.activeElement.textContent")
    assert focused == "three"  # a person who came by keyboard stays there


def test_a_length_that_does_not_fit_says_so_and_offers_what_was_recorded(opened):
    page = opened()
    page.get_by_role("slider", name="vector_length").focus()
    page.keyboard.press("End")
    problem = page.locator(".vblora-problem")
    problem.wait_for()
    assert "vector_length=100" in problem.inner_text()
    assert problem.get_by_role("button").count() == 0  # 64, which wasn't recorded
    assert page.locator(".vblora-verdict").inner_text() == "✕ 1 problem"


def test_what_can_not_be_meant_is_said_and_the_rest_stays(opened):
    page = opened()
    page.get_by_role("slider", name="num_vectors").press("Home")
    page.locator("pre.vblora-code", has_text="num_vectors=8,").wait_for()
    before = page.locator("pre.vblora-code").inner_text()
    page.get_by_role("slider", name="topk").press("End")
    page.locator(".vblora-verdict", has_text="can't be meant").wait_for()
    assert "topk=16" in page.locator(".vblora-problem").inner_text()
    assert page.locator("pre.vblora-code").inner_text() == before


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1024, True), (1400, False)])
def test_it_fits(opened, screenshots, width, dark):
    page = opened(width=width, dark=dark)
    assert not overflows(page)
    assert is_dark(page.locator(".vblora-explorer")) == dark
    page.screenshot(path=screenshots / f"recorded-{width}-{dark}.png", full_page=True)


def test_an_explorer_writes_its_page(opened, models, tmp_path):
    values = {"r": [1, 4], "save_only_topk_weights": [False, True]}
    explorer = ConfigExplorer(models["two"], config_of())
    page = opened(explorer.to_html(tmp_path / "x.html", values=values).read_text(encoding="utf-8"))
    assert page.get_by_role("slider").count() == 1
    page.get_by_label("save_only_topk_weights").uncheck()
    stored = plan(models["two"], config_of(save_only_topk_weights=False)).stored_bytes
    page.locator(".vblora-fact-number", has_text=readable(stored)).wait_for()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": [1]}, "values has 'rank', but a recorded"),
        ({"r": [1, 2]}, "begins with the config's 4"),
    ],
)
def test_values_that_can_not_be_recorded_are_refused(models, values, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        ConfigExplorer(models["two"], config_of()).to_html(tmp_path / "x.html", values=values)
    assert not (tmp_path / "x.html").exists()
