"""Expressions from strangers: an answer soon, or a refusal."""

import time

import pytest
import torch
from torch import nn

import vblora_lab as lab
from tests.cases import CASES
from vblora_lab.errors import ConfigError
from vblora_lab.tuner import patterns

ENDLESS = [
    r"(([a-z0-9_]+)\.?)+#",
    r"(a|[a-z._0-9]|[a-z._0-9]+)*#",
    r".*.*.*.*.*.*.*.*.*.*.*#",
    r"([a-z_.0-9]*)*\d#",
]


@pytest.mark.parametrize("expression", ENDLESS)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern"])
def test_what_takes_for_ever_is_refused(field, expression):
    fields = {**CASES["opt"].config, field: expression}
    if field == "layers_pattern":
        fields["layers_to_transform"] = [0]
    with pytest.raises(ConfigError, match=f"{field}=.*takes more than 1 s") as caught:
        lab.plan(CASES["opt"].base(), lab.VBLoRAConfig(**fields))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "expression",
    [r".*\.(q|v)_proj", r".*layers\.(0|1)\..*\.(fc1|fc2)", r"(model\.)?decoder\.layers\.\d+\.fc1",
     r"(?:.*\.)?(?:self_attn\.)?(?:q_proj|k_proj|v_proj)"],
)  # fmt: skip
def test_what_people_write_passes(expression):
    names = [name for name, _ in CASES["opt"].base().named_modules()]
    patterns.check_takes_no_time("target_modules", expression, names)


def test_few_repeats_need_no_helper(monkeypatch):
    monkeypatch.setattr(patterns, "_ends_in_time", lambda *_: pytest.fail("a process was started"))
    patterns.check_takes_no_time("target_modules", r".*\.layers\..*\.(q|v)_proj", ["a"])


@pytest.mark.parametrize("expression", ["(" * 5_000, "a{99999999999999999999}", "a" * 10_001, "["])
def test_what_is_no_expression_is_refused_when_the_config_is_made(expression):
    with pytest.raises(ConfigError, match="target_modules"):
        lab.VBLoRAConfig(target_modules=expression)


def test_a_layer_of_any_size_is_planned_at_once():
    """Sizes whose divisors can't be counted one by one. On "meta": no memory is taken."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**9, 10**9), nn.Linear(10**9, 999_999_937))
    config = lab.VBLoRAConfig(target_modules=["0"], vector_length=256)
    begin = time.process_time()
    assert lab.plan(model, config).fits
    lab.plan(model, lab.VBLoRAConfig(target_modules=["0", "1"], vector_length=256))
    assert time.process_time() - begin < 5  # it took hours
