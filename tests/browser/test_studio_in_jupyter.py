"""The studio in real servers of both kinds: train, reload meanwhile, stop, take, restart."""

from __future__ import annotations

from browser_lab import (
    LONG,
    picture,
    run_cell,
    steps_told,
    wait_for_another_picture,
    wait_for_step,
    wait_until_idle,
)

STEPS = 1000  # more than are taken: every run here is stopped on its way
MAKE = f"""
from vblora_lab import LearningRates, TrainingSession, TrainingStudio, VBLoRAConfig

config = VBLoRAConfig(num_vectors=64, vector_length=64, target_modules=["q_proj", "v_proj"])
rates = LearningRates(bank=1e-2, logits=1e-1)
few = {{"eval_examples": 2, "sample_count": 1, "learning_rates": rates, "batch_size": 4}}
earlier = TrainingSession("mini-opt", config, steps=4, seed=1, **few)
session = TrainingSession("mini-opt", config, steps={STEPS}, **few)
studio = TrainingStudio(session, runs={{"earlier": earlier.run()}}, driver="thread")
studio
"""
HOSTILE = "<img src=x onerror=alert(1)>"
UNNAMED = """() =>
  [...document.querySelectorAll(
    ".vblora-panel :is(input, select, textarea, button, canvas, [role=slider])"
  )].filter((e) => e.checkVisibility() && !e.getAttribute("aria-label") && !e.title
      && !e.textContent.trim() && ![...(e.labels ?? [])].some((label) => label.textContent.trim()))
    .map((e) => e.outerHTML)"""
HOSTILE_PANELS = f"""
import ipywidgets
from torch import nn
from vblora_lab import (
    LiveTraining, TrainingSession, TrainingStudio, VBLoRAConfig, load_base, load_task
)

name = {HOSTILE!r}
base = load_base("mini-opt")
base.model.model.decoder.layers[0].add_module(name, nn.Linear(256, 256))
base.model.name_or_path = name
config = VBLoRAConfig(num_vectors=64, vector_length=64, target_modules=[name, "q_proj"])
session = TrainingSession(base, config, steps=1, batch_size=1, eval_examples=0, sample_count=0)
studio = TrainingStudio(session, runs={{name: session.run()}})
studio.overlay.value = (name,)
studio.folder.value = name
studio._export_buttons["figure"].click()
ipywidgets.VBox([LiveTraining(base, config=config), studio])
"""


def test_a_studio_outlives_reloads_and_begins_anew_with_its_kernel(browser, front_end, screenshots):
    files = front_end.write("studio", MAKE).parent
    page = front_end.open(browser, "studio")
    run_cell(page)
    panel = page.locator(".vblora-panel")
    panel.wait_for(timeout=LONG)
    panel.get_by_role("listbox", name="other runs").select_option("earlier")
    panel.locator(".vblora-key", has_text="earlier").wait_for()
    save(page)
    panel.get_by_role("button", name="Train").click()
    wait_for_step(page, 3)

    page.reload()
    panel.wait_for(timeout=LONG)
    seen = wait_for_step(page, 4)  # what was told before, and the run goes on
    loss, heatmap = panel.locator("canvas").nth(0), panel.locator("canvas").nth(1)
    before = picture(loss), picture(heatmap)
    wait_for_step(page, seen + 5)
    wait_for_another_picture(loss, before[0])
    wait_for_another_picture(heatmap, before[1])
    assert "▶ training" in panel.locator(".vblora-status").inner_text()
    assert panel.locator(".vblora-key", has_text="earlier").is_visible()

    # The buttons still reach the kernel: weights rest only once the run does.
    panel.locator(".vblora-exports button", has_text="adapter").click()
    panel.get_by_text("✕ adapter: the weights change with every step").wait_for()
    panel.get_by_role("button", name="Stop").click()
    page.get_by_text("■ stopped").wait_for()
    assert steps_told(page) < STEPS
    for what, path in (("adapter", "adapter"), ("LoRA", "lora"), ("trace", "run.trace"),
                       ("figure", "loss.png"), ("code", "train.py")):  # fmt: skip
        panel.locator(".vblora-exports button", has_text=what).click()
        panel.get_by_text(f"✓ {what}: {files / 'studio' / path}").wait_for()
        assert (files / "studio" / path).exists()
    page.screenshot(path=screenshots / f"studio-in-{front_end.application}.png")

    page.reload()
    panel.wait_for(timeout=LONG)
    page.get_by_text("■ stopped").wait_for()  # the end is found again too

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.get_by_text("○ ready").wait_for(timeout=LONG)
    wait_until_idle(page)
    assert steps_told(page) == 0
    panel.get_by_role("button", name="Train").click()
    wait_for_step(page, 2)
    panel.get_by_role("button", name="Stop").click()
    page.get_by_text("■ stopped").wait_for()
    page.context.close()


def test_names_in_the_panels_are_shown_and_never_run(browser, lab):
    lab.write("hostile", HOSTILE_PANELS)
    page = lab.open(browser, "hostile")
    ran = []
    page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    run_cell(page)
    live, studio = (page.locator(".vblora-panel").nth(i) for i in range(2))
    studio.wait_for(timeout=LONG)
    modules = live.get_by_role("listbox", name="modules").inner_text()
    assert HOSTILE in modules.replace("\xa0", " ")  # how ipywidgets keeps spaces
    assert HOSTILE in live.locator(".vblora-subtitle").inner_text()
    assert HOSTILE in studio.locator(".vblora-facts-list").inner_text()
    assert HOSTILE in studio.locator(".vblora-legend").first.inner_text()
    assert HOSTILE in studio.locator(".vblora-written").inner_text()
    assert page.locator(".vblora-panel img").count() == 0

    # And what a person can do is named for those who hear the page.
    for panel, sliders in ((live, ("r", "topk", "bank", "logits")),
                           (studio, ("bank", "logits", "mean of"))):  # fmt: skip
        for name in sliders:
            slider = panel.get_by_role("slider", name=name, exact=True)
            slider.wait_for()
            assert slider.get_attribute("aria-valuetext")
    assert page.evaluate(UNNAMED) == []
    assert ran == []
    page.context.close()


def save(page) -> None:
    with page.expect_response(
        lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url
    ):
        page.keyboard.press("Control+s")
