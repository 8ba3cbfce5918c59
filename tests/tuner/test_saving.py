"""The tensors of an adapter as they are in a model, by the keys of its file."""

import peft
import pytest
import torch

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, scramble
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.saving import full_state_dict


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_full_state_dict_is_what_peft_stores_with_all_logits(case):
    model = case.ours()
    scramble(model)
    stored = peft.get_peft_model_state_dict(model)
    full = full_state_dict(model)
    assert full.keys() == stored.keys()
    for key, tensor in full.items():
        assert tensor.data_ptr() == stored[key].data_ptr(), key


def test_it_has_all_logits_whatever_is_to_be_stored(opt_case):
    compact, whole = (opt_case.ours(save_only_topk_weights=only) for only in (True, False))
    scramble(compact)
    scramble(whole)
    expected = full_state_dict(whole)
    found = full_state_dict(compact)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_it_is_of_one_adapter_with_the_bank_that_is_shared(opt_case):
    model = opt_case.ours(bias="all")
    lab.add_adapter(model, "task", VBLoRAConfig(**{**opt_case.config, "r": 1}))
    full = full_state_dict(model, "task")
    bank = full.pop("base_model.vblora_vector_bank")
    assert bank.data_ptr() == model.base_model.vblora_vector_bank["default"].data_ptr()
    assert all(key.endswith((".vblora_logits_A", ".vblora_logits_B")) for key in full)
    assert {tensor.shape[0] for key, tensor in full.items() if key.endswith("_A")} == {1}
    with pytest.raises(KeyError):
        full_state_dict(model, "nope")
