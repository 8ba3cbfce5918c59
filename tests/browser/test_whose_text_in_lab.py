"""WhoseText in a real JupyterLab: facts that a reader types are written about by real adapters."""

from __future__ import annotations

from browser_lab import LONG, run_cell

CELL = """
import torch
import vblora_lab as lab
from vblora_lab.data.styles import styles
from vblora_lab.train import write_texts
from vblora_lab.train.one_bank import add_user
from vblora_lab.tuner.adapted import adapted_layers
torch.manual_seed(0)
base = lab.load_base("mini-opt", device="cpu")
sizes = dict(r=2, num_vectors=16, vector_length=64, init_vector_bank_bound=0.3)
config = lab.VBLoRAConfig(**sizes, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = lab.get_peft_model(base.model, config)
users = dict(zip(("ada", "alan"), styles(2, seed=0)))
for name in users:
    add_user(model, name)
    for layer in adapted_layers(model, name).values():
        for logits in layer.logits(name):
            logits.data = torch.randn_like(logits)

def write(mrs, names):
    return write_texts(model, base.tokenizer, mrs, adapter_names=names, max_new_tokens=12)

whose = lab.WhoseText(users, {"LoRA": [1, 2]}, ["name[The Mill]"], write)
whose
"""
CHECK = """
alone = []
for name in ("ada", "alan"):
    model.set_adapter(name)
    alone += write_texts(model, base.tokenizer, [whose.prompt], max_new_tokens=12)
found = whose.texts[whose.prompt]
print("prompt", whose.prompt, "right:", [found[name]["text"] for name in users] == alone)
print("apart:", alone[0] != alone[1], "prompts:", len(whose.texts))
"""


def test_a_reader_s_own_facts(browser, lab, screenshots):
    lab.write("whose", CELL, CHECK)
    page = lab.open(browser, "whose")
    page.set_default_timeout(60_000)
    run_cell(page)
    box = page.get_by_label("or your own")
    box.wait_for(timeout=LONG)
    box.fill("no facts")
    page.get_by_role("button", name="Write", exact=True).click()
    page.locator(".vblora-whose-problem", has_text="Write slots as").wait_for(timeout=LONG)
    box.fill("name[Blue Spice],food[Thai]")
    box.press("Enter")
    chosen = page.get_by_label("facts", exact=True)
    page.wait_for_function(
        "e => e.value === 'name[Blue Spice], food[Thai]'", arg=chosen.element_handle()
    )
    assert page.locator(".vblora-whose-problem").inner_text() == ""
    shown = page.locator(".vblora-whose-card p").all_inner_texts()
    page.get_by_role("slider", name="user").press("End")
    page.get_by_text("alan's adapter").wait_for()
    assert page.locator(".vblora-whose-card p").first.inner_text() == shown[2]
    page.screenshot(path=screenshots / "whose-text-in-lab.png", full_page=True)
    run_cell(page, 1)
    page.get_by_text("right: True").wait_for(timeout=LONG)
    assert "apart: True prompts: 2" in page.locator(".jp-Cell").nth(1).inner_text()
