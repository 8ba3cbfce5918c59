"""The optimizer's groups, and the schedule they follow."""

import pytest

from vblora_lab.bases import share_weights
from vblora_lab.errors import ConfigError
from vblora_lab.train import LearningRates, TrainingSession, make_optimizer, suited_rates
from vblora_lab.train.methods import default_rates
from vblora_lab.tuner.peft import get_peft_model


def test_bank_logits_and_the_rest_have_their_own_rates(base, config):
    config.bias = "vblora_only"
    model = get_peft_model(share_weights(base.model), config)
    groups = {g["name"]: g for g in make_optimizer(model, LearningRates(other=7e-4)).param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "bank": 1e-3,
        "logits": 1e-2,
        "other": 7e-4,
    }
    assert [p.shape for p in groups["bank"]["params"]] == [(16, 128)]
    assert len(groups["logits"]["params"]) == 2 * 12 and len(groups["other"]["params"]) == 12
    in_groups = {id(p) for group in groups.values() for p in group["params"]}
    assert in_groups == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_group_without_parameters_is_left_out(base, config):
    model = get_peft_model(share_weights(base.model), config)
    names = [group["name"] for group in make_optimizer(model, LearningRates()).param_groups]
    assert names == ["bank", "logits"]


@pytest.mark.parametrize("bad", [-1e-3, float("nan"), float("inf"), "1e-3", None])
def test_bad_rates_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=r"learning rate logits=.*default is 0\.01"):
        LearningRates(logits=bad)


def test_who_names_no_rates_gets_those_that_suit_the_number_of_steps(base, config, task):
    paper, short = LearningRates(bank=1e-3, logits=1e-2), LearningRates(bank=1e-2, logits=1e-1)
    for steps, expected in ((60, short), (1_000, short), (1_001, paper)):
        session = TrainingSession(base, config, task, steps=steps, eval_examples=0, sample_count=0)
        assert session.learning_rates == suited_rates(steps) == expected


def test_rivals_get_rates_for_as_short_a_run():
    assert default_rates("VB-LoRA", 100) == suited_rates(100)
    assert (default_rates("LoRA", 100).other, default_rates("LoRA", 10_000).other) == (5e-3, 5e-4)
    assert default_rates("full fine-tuning", 100).other == 5e-5
