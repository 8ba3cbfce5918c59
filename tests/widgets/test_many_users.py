"""ManyUsers from Python: its numbers, what it refuses, its picture and its page."""

import pytest
from traitlets import TraitError

from vblora_lab import ManyUsers, VBLoRAConfig, plan
from vblora_lab.bases import load_skeleton
from vblora_lab.errors import ConfigError


@pytest.fixture(scope="module")
def many():
    return ManyUsers(model="mini-opt", rank=4, users=50)


def test_its_numbers_are_plans(many):
    config = VBLoRAConfig(
        r=4, num_vectors=192, vector_length=128, target_modules="all-linear",
        save_only_topk_weights=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    planned = plan(load_skeleton("mini-opt"), config)
    stored, bank = many.stored_bytes, 192 * 128 * 4
    assert stored["LoRA"] == 50 * planned.lora_bytes
    assert stored["VB-LoRA, a bank each"] == 50 * planned.topk_bytes
    assert stored["VB-LoRA, one bank for all"] == bank + 50 * (planned.topk_bytes - bank)
    offer = next(o for o in many.offers if o["model"] == "mini-opt")
    assert offer["parameters"] == planned.base_parameters
    assert set(offer["costs"]) == {"1", "2", "4", "8", "16", "32", "64"}


def test_models_come_from_small_to_large(many):
    sizes = [offer["parameters"] for offer in many.offers]
    assert sizes == sorted(sizes) and len(sizes) == len(ManyUsers.models()) == 6
    assert 12.8e9 < sizes[4] < 13e9


def test_what_it_refuses_changes_nothing(many):
    for name, value, error, words in (
        ("model", "OPT-13", ConfigError, "Did you mean 'OPT-13b'?"),
        ("rank", 3, ConfigError, "must be one of"),
        ("users", 0, TraitError, ""),
    ):
        before = getattr(many, name)
        with pytest.raises(error, match=words or None):
            setattr(many, name, value)
        assert getattr(many, name) == before


def test_its_picture_and_its_page(many, tmp_path):
    figure = many.figure()
    lines, bars = figure.axes
    assert len(lines.lines) == 6 and lines.get_xscale() == lines.get_yscale() == "log"
    assert sorted(bar.get_width() for bar in bars.patches) == sorted(many.stored_bytes.values())
    assert "For 50 users: VB-LoRA, one bank for all" in figure.alt
    text = many.to_html(tmp_path / "many.html").read_text(encoding="utf-8")
    assert 'src="http' not in text and len(text) < 400_000
