"""What is stored in more bytes than LoRA is said to be, with what would take less."""

import dataclasses

import pytest
import torch
from torch import nn

from vblora_lab import VBLoRAConfig, plan
from vblora_lab.bases import load_skeleton
from vblora_lab.planning.worth import config_that_pays, dearer_than_lora

TWELVE = [(256, 256)] * 12
MINI = {"vector_length": 64, "target_modules": ["q_proj", "v_proj"]}


def stored(config):
    """Bytes of a VB-LoRA on TWELVE, and of LoRA, by hand."""
    count = 12 * config.r * 512 // config.vector_length
    index = 1 if config.num_vectors <= 128 else 2  # int8, int16
    each = 4 * config.num_vectors
    if config.save_only_topk_weights:
        each = index * config.topk + 4 * (config.topk - 1)
    return 4 * config.num_vectors * config.vector_length + count * each, 12 * config.r * 512 * 4


@pytest.mark.parametrize("only_topk", [True, False])
@pytest.mark.parametrize("vectors", [8, 64, 256, 1024])
def test_it_is_said_of_those_that_are_larger_than_lora(vectors, only_topk):
    config = VBLoRAConfig(num_vectors=vectors, save_only_topk_weights=only_topk, **MINI)
    ours, lora = stored(config)
    found = dearer_than_lora(config, TWELVE)
    assert bool(found) == (ours > lora)
    if found:
        times = f"{ours / lora:.1f}" if ours < 10 * lora else f"{ours / lora:.0f}"
        assert f"this is {times} times LoRA of rank 4" in found[0].message
        better = dataclasses.replace(config, **{found[0].field: found[0].suggestion})
        assert stored(better)[0] < ours


def test_taking_what_is_suggested_ends_below_lora():
    config = VBLoRAConfig(num_vectors=2048, **MINI)
    (first,) = dearer_than_lora(config, TWELVE)
    assert (first.field, first.suggestion) == ("save_only_topk_weights", True)
    (second,) = dearer_than_lora(dataclasses.replace(config, save_only_topk_weights=True), TWELVE)
    assert second.field == "num_vectors"
    assert "the bank alone takes 512.0 KiB" in second.message
    last = VBLoRAConfig(num_vectors=second.suggestion, save_only_topk_weights=True, **MINI)
    ours, lora = stored(last)
    assert ours <= lora / 2 and dearer_than_lora(last, TWELVE) == []
    twice = dataclasses.replace(last, num_vectors=2 * last.num_vectors)
    assert stored(twice)[0] > lora / 2, "no more vectors are taken away than need be"


def test_a_plan_says_it_and_one_that_does_not_fit_says_why_alone():
    skeleton = load_skeleton("mini-opt")
    (caution,) = plan(skeleton, VBLoRAConfig(**MINI)).cautions
    assert "times LoRA of rank 4" in caution.message
    assert "-> save_only_topk_weights=True" in str(plan(skeleton, VBLoRAConfig(**MINI)))
    refused = plan(skeleton, VBLoRAConfig(**{**MINI, "vector_length": 100}))
    assert refused.problems and not refused.cautions
    for text in (str(refused), refused._repr_html_()):
        assert "stored" not in text and "AdamW" not in text and "no sizes to tell" in text


@pytest.mark.parametrize("sizes", [(256, 256), (96, 48), (64, 8)])
def test_a_form_opens_on_what_fits_and_pays(sizes):
    with torch.device("meta"):
        model = nn.ModuleList(nn.Sequential(nn.Linear(*sizes)) for _ in range(8))
    start = VBLoRAConfig(target_modules="all-linear")
    found = plan(model, config_that_pays(model, start))
    assert found.fits and found.stored_bytes < found.lora_bytes
    assert start.num_vectors == 256 and not start.save_only_topk_weights


def test_what_pays_already_is_left_as_it_is():
    config = VBLoRAConfig(num_vectors=64, save_only_topk_weights=True, **MINI)
    assert config_that_pays(load_skeleton("mini-opt"), config) is config
