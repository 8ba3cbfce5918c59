"""VBLoRAConfig: PEFT's fields and file, and a sentence for each value that can't be meant."""

import dataclasses
import json
import warnings

import numpy as np
import peft
import pytest

from vblora_lab.errors import ConfigError
from vblora_lab.tuner.config import VBLoRAConfig, as_vblora_config


def test_fields_and_defaults_are_those_of_peft():
    stock = {
        f.name: getattr(peft.VBLoRAConfig(), f.name) for f in dataclasses.fields(peft.VBLoRAConfig)
    }
    ours = {f.name: getattr(VBLoRAConfig(), f.name) for f in dataclasses.fields(VBLoRAConfig)}
    assert ours == stock
    own = set(VBLoRAConfig.__annotations__)
    assert len(own) == 15
    assert all(f.metadata["help"] for f in dataclasses.fields(VBLoRAConfig) if f.name in own)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"r": 2.5}, ["r=2.5", "whole number", "nearest is 2"]),
        ({"r": True}, ["r=True", "bool"]),
        ({"r": "4"}, ["r='4'", "str"]),
        ({"r": 0}, ["r=0", "at least 1", "nearest is 1"]),
        ({"r": -0.3}, ["nearest is 1"]),
        ({"r": float("nan")}, ["r=nan", "whole number"]),
        ({"num_vectors": 0}, ["num_vectors=0", "at least 1"]),
        ({"num_vectors": 2**31}, ["num_vectors=2147483648", "below 2147483648"]),
        ({"vector_length": 0}, ["vector_length=0", "at least 1"]),
        ({"num_vectors": 2.5}, ["num_vectors=2.5", "whole number"]),
        ({"vector_length": 2.5}, ["vector_length=2.5", "whole number"]),
        ({"topk": 0}, ["topk=0"]),
        ({"topk": 2.0}, ["topk=2.0", "not float; the nearest is 2"]),
        ({"topk": 9, "num_vectors": 8}, ["topk=9", "num_vectors=8", "at most 8"]),
        ({"vblora_dropout": 1.0}, ["vblora_dropout=1.0", "below 1.0"]),
        ({"vblora_dropout": -0.1}, ["vblora_dropout=-0.1", "at least 0.0"]),
        ({"vblora_dropout": float("inf")}, ["vblora_dropout=inf", "finite"]),
        ({"vblora_dropout": False}, ["vblora_dropout=False"]),
        ({"init_vector_bank_bound": -1}, ["init_vector_bank_bound=-1", "at least 0.0"]),
        ({"init_logits_std": "0.1"}, ["init_logits_std='0.1'"]),
        ({"vblora_dropout": 2}, ["vblora_dropout=2.0", "below 1.0"]),
        ({"init_vector_bank_bound": None}, ["init_vector_bank_bound=None", "finite"]),
        ({"fan_in_fan_out": None}, ["fan_in_fan_out=None", "True or False"]),
        ({"inference_mode": "yes"}, ["inference_mode='yes'", "True or False"]),
        ({"modules_to_save": [3]}, ["modules_to_save", "3 is not a name"]),
        ({"exclude_modules": 3}, ["exclude_modules=3", "list of names"]),
        ({"save_only_topk_weights": 1}, ["save_only_topk_weights=1", "True or False"]),
        ({"bias": "lora_only"}, ["bias='lora_only'", "'none', 'all'", "mean 'vblora_only'"]),
        ({"bias": None}, ["bias=None", "mean 'none'"]),
        ({"task_type": "CASUAL_LM"}, ["task_type='CASUAL_LM'", "mean 'CAUSAL_LM'"]),
        ({"target_modules": []}, ["target_modules=[]"]),
        ({"target_modules": ["q", 3]}, ["target_modules", "3 is not a name"]),
        ({"target_modules": ""}, ["target_modules=''"]),
        ({"target_modules": ".*(q|v"}, ["target_modules='.*(q|v'", "regular expression"]),
        ({"target_modules": 5}, ["target_modules=5", "list of names"]),
        ({"exclude_modules": "["}, ["exclude_modules='['", "regular expression"]),
        ({"modules_to_save": "head"}, ["modules_to_save='head'", "['head']"]),
        ({"layers_pattern": "h"}, ["layers_pattern='h'", "layers_to_transform"]),
        ({"layers_pattern": "h(", "layers_to_transform": 1}, ["layers_pattern", "expression"]),
        ({"layers_to_transform": [0, -1]}, ["layers_to_transform=-1", "at least 0"]),
        ({"layers_to_transform": -1}, ["layers_to_transform=-1", "nearest is 0"]),
        ({"layers_to_transform": []}, ["layers_to_transform=[]", "every layer"]),
        ({"layers_to_transform": 1.5}, ["layers_to_transform=1.5", "whole number"]),
        ({"layers_to_transform": [True]}, ["layers_to_transform=True", "bool"]),
        ({"layers_pattern": 5, "layers_to_transform": 1}, ["layers_pattern=5", "list of names"]),
        ({"layers_pattern": [3], "layers_to_transform": 1}, ["layers_pattern", "3 is not a name"]),
        ({"layers_to_transform": 1, "target_modules": ".*q"}, ["layers_to_transform=1", "'.*q'"]),
        ({"layers_to_transform": "0"}, ["layers_to_transform='0'"]),
        ({"layers_to_transform": 1, "target_modules": "all-linear"}, ["layers_to_transform=1"]),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(fields, parts):
    with pytest.raises(ConfigError) as error:
        VBLoRAConfig(**fields)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"init_vector_bank_bound": 0}, "init_vector_bank_bound=0"),
        ({"topk": 1}, "topk=1"),
        ({"init_logits_std": 0}, "init_logits_std=0"),
    ],
)
def test_a_value_that_stops_learning_warns_where_it_was_given(fields, word):
    with pytest.warns(UserWarning, match=word) as caught:
        VBLoRAConfig(**fields)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 2.5},
        {"topk": 2.0},
        {"topk": 9, "num_vectors": 8},
        {"num_vectors": 0},
        {"vector_length": 0},
        {"vblora_dropout": 1.5},
        {"bias": "lora_only"},
        {"target_modules": ".*(q|v"},
        {"init_vector_bank_bound": 0},
        {"topk": 1},
    ],
    ids=str,
)
def test_peft_still_takes_any_value_without_a_word(fields):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peft.VBLoRAConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "dead"),
    [({"init_vector_bank_bound": 0.0}, "vblora_"), ({"topk": 1}, "vblora_logits")],
    ids=str,
)
def test_peft_still_trains_on_with_gradients_that_are_all_zero(opt_case, fields, dead):
    """The two warnings are right: nothing (or no logit) would ever move."""
    with pytest.warns(UserWarning, match=next(iter(fields))):
        ours = opt_case.ours(**fields)
    for model in (ours, opt_case.stock(**fields)):
        opt_case.output(model.train()).square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if dead in n}
        assert gradients and not any(grad.any() for grad in gradients.values())


def test_no_warning_for_a_config_that_only_infers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VBLoRAConfig(topk=1, inference_mode=True)
        VBLoRAConfig()


def test_numbers_of_numpy_become_plain_so_that_json_can_hold_them():
    config = VBLoRAConfig(
        r=np.int64(3), vblora_dropout=np.float32(0.5), layers_to_transform=range(2)
    )
    assert json.loads(json.dumps(config.to_dict()))["r"] == 3
    assert (type(config.r), type(config.vblora_dropout)) == (int, float)
    assert config.layers_to_transform == [0, 1]


FULL = {
    "r": 2,
    "num_vectors": 8,
    "vector_length": 4,
    "topk": 3,
    "target_modules": ["v_proj", "q_proj"],
    "exclude_modules": ["k_proj"],
    "save_only_topk_weights": True,
    "vblora_dropout": 0.25,
    "fan_in_fan_out": True,
    "bias": "vblora_only",
    "modules_to_save": ["head"],
    "init_vector_bank_bound": 0.5,
    "init_logits_std": 1.0,
    "layers_to_transform": [0, 2],
    "layers_pattern": "layers",
    "task_type": "CAUSAL_LM",
}


def values(config):
    return {name: getattr(config, name) for name in (f.name for f in dataclasses.fields(config))}


def test_the_file_loads_in_peft_and_peft_s_file_here(tmp_path):
    ours, stock = VBLoRAConfig(**FULL), peft.VBLoRAConfig(**FULL)
    assert values(ours) == values(stock)
    ours.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    in_peft = peft.PeftConfig.from_pretrained(tmp_path / "ours")
    assert type(in_peft) is peft.VBLoRAConfig
    assert values(in_peft) == values(stock)
    here = VBLoRAConfig.from_pretrained(tmp_path / "stock")
    assert type(here) is VBLoRAConfig
    assert values(here) == values(stock)


def test_the_file_is_the_same_each_time(tmp_path):
    names = [f"module_{i}" for i in range(20)]
    texts = []
    for order, folder in ((names, "a"), (names[::-1], "b")):
        VBLoRAConfig(target_modules=order).save_pretrained(tmp_path / folder)
        texts.append((tmp_path / folder / "adapter_config.json").read_text())
    assert texts[0] == texts[1]


def test_a_file_of_a_newer_peft_loads_with_a_warning():
    with pytest.warns(UserWarning, match="use_magic"):
        config = VBLoRAConfig.from_peft_type(peft_type="VBLORA", r=3, use_magic=True)
    assert config.r == 3


def test_a_file_of_another_method_is_refused(tmp_path):
    peft.LoraConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="LORA"):
        VBLoRAConfig.from_pretrained(tmp_path)


def test_as_vblora_config_copies_and_checks():
    ours, stock = VBLoRAConfig(**FULL), peft.VBLoRAConfig(**FULL)
    for given in (ours, stock):
        copy = as_vblora_config(given)
        assert type(copy) is VBLoRAConfig
        assert values(copy) == values(given)
        copy.target_modules.add("more")
        assert given.target_modules == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="LoraConfig"):
        as_vblora_config(peft.LoraConfig())
    stock.topk = 99
    with pytest.raises(ConfigError, match="topk=99"):
        as_vblora_config(stock)


@pytest.mark.parametrize(
    ("field", "value", "suggestion"),
    [("vblora_dropout", 1.0, None), ("vblora_dropout", -0.5, 0.0), ("num_vectors", 2**31, None),
     ("r", 0, 1)],
)  # fmt: skip
def test_only_below_its_bound_the_nearest_value_is_known(field, value, suggestion):
    with pytest.raises(ConfigError) as caught:
        VBLoRAConfig(**{field: value})
    assert caught.value.field == field and caught.value.suggestion == suggestion
