"""Adapters of which a part isn't trained."""

import peft
import pytest
import torch

import vblora_lab as lab
from tests.cases import CASES, assert_close
from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.tuner.adapted import adapted_layers


def train(model, case, steps=4):
    """A few steps of Adam that are large beside the gaps between logits."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.3)
    tokens = case.inputs()
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("parts", "moved"),
    [
        ((), {"choices", "weights", "bank"}),
        (("choices",), {"weights", "bank"}),
        (("weights",), {"bank"}),
        (("choices", "weights"), {"bank"}),
        (("bank",), {"choices", "weights"}),
        (("choices", "bank"), {"weights"}),
    ],
)
def test_what_is_frozen_stays_and_all_else_is_trained(parts, moved):
    case = CASES["opt"]
    model = case.ours()
    before, bank = read_selection(model), model.base_model.vblora_vector_bank["default"]
    output, start = case.output(model), bank.detach().clone()
    lab.freeze(model, *parts)
    assert torch.equal(case.output(model), output)  # to freeze changes nothing yet
    train(model, case)
    after = read_selection(model)
    changed = {
        "choices": after.churn(before) > 0,
        "weights": bool((after.weights != before.weights).any()),
        "bank": not torch.equal(bank, start),
    }
    assert {name for name, has in changed.items() if has} == moved


def test_the_file_is_as_any_other(tmp_path):
    case = CASES["opt"]
    model = case.ours(save_only_topk_weights=True)
    lab.freeze(model, "choices")
    train(model, case)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(case.base(), tmp_path)
    assert_close(case.output(loaded.eval()), case.output(model.eval()), relative=1e-5)


def test_a_wrong_name_is_refused_before_anything_is_frozen():
    model = CASES["opt"].ours()
    with pytest.raises(ConfigError, match=r"part='choice'.*choices, weights, bank.*choices"):
        lab.freeze(model, "bank", "choice")
    with pytest.raises(TargetError, match="'other'"):
        lab.freeze(model, "bank", adapter_name="other")
    assert model.base_model.vblora_vector_bank["default"].requires_grad
    layer = next(iter(adapted_layers(model).values()))
    assert all(logits.requires_grad and logits.min() > -10 for logits in layer.logits("default"))
