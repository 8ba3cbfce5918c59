"""What users' adapters cost: sizes are those of files that PEFT and this package write."""

import peft
import pytest
from peft import VeraConfig
from peft.utils import get_peft_model_state_dict

from vblora_lab import VBLoRAConfig, get_peft_model, load_base
from vblora_lab.bases import share_weights
from vblora_lab.planning.users import VERA_RANK, costs_of_users

CONFIG = VBLoRAConfig(
    r=4, num_vectors=64, vector_length=64, target_modules="all-linear",
    save_only_topk_weights=True, task_type="CAUSAL_LM",
)  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return load_base("mini-opt", device="cpu").model


def nbytes(model):
    return sum(t.nbytes for t in get_peft_model_state_dict(model).values())


def test_they_are_what_peft_stores(base):
    costs = {cost.method: cost for cost in costs_of_users(base, CONFIG)}
    lora = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    for name, r in (("LoRA", 4), ("LoRA of rank 1", 1)):
        model = peft.get_peft_model(share_weights(base), peft.LoraConfig(r=r, **lora))
        assert (costs[name].once, costs[name].each) == (0, nbytes(model))
    with pytest.warns(UserWarning, match="vera_A and vera_B"):
        vera = VeraConfig(r=VERA_RANK, save_projection=False, **lora)
    assert costs["VeRA"].each == nbytes(peft.get_peft_model(share_weights(base), vera))
    ours = get_peft_model(share_weights(base), CONFIG)
    assert costs["VB-LoRA, a bank each"].each == ours.stored_bytes()


def test_one_bank_is_stored_once(base, tmp_path):
    alone, shared = costs_of_users(base, CONFIG)[-2:]
    assert shared.once == 64 * 64 * 4
    assert shared.once + shared.each == alone.each and alone.once == 0
    sub_vectors = 6 * 4 * (4 * (4 + 4) + (4 + 16) + (16 + 4))  # r=4, pieces of 64, 6 layers
    assert shared.each == sub_vectors * (2 + 4)
