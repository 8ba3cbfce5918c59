"""Which layers of a model carry an adapter, whoever asks, and their sizes."""

import pytest
import torch

from tests.cases import CASES
from vblora_lab.tuner.adapted import adapted_layers, features
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.targets import resolve


def test_a_model_and_all_that_is_in_it_have_the_same_layers(opt_case):
    model = opt_case.ours()
    layers = adapted_layers(model)
    assert len(layers) == 8
    base = model.get_base_model()
    assert all(base.get_submodule(name) is layer for name, layer in layers.items())
    for each in (model.base_model, base, torch.compile(model)):
        found = adapted_layers(each)
        assert list(found) == list(layers)
        assert all(found[name] is layer for name, layer in layers.items())
    assert adapted_layers(model, "nope") == {}


def test_layers_of_one_adapter_alone(opt_case):
    model = opt_case.ours()
    model.add_adapter("other", VBLoRAConfig(**{**opt_case.config, "target_modules": ["k_proj"]}))
    assert all(name.endswith("k_proj") for name in adapted_layers(model, "other"))
    assert len(adapted_layers(model, "other")) == 2
    assert len(adapted_layers(opt_case.stock())) == 0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_features_are_those_of_the_layers_before_they_were_adapted(case):
    _, targets = resolve(case.base(), VBLoRAConfig(**case.config))
    assert features(adapted_layers(case.ours())) == features(targets)


def test_features_are_inputs_first():
    assert features(adapted_layers(CASES["conv1d"].ours())) == {"first": (8, 12), "second": (12, 4)}
