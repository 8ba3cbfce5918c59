"""Starts that differ from the paper's: B A = 0 exactly, and TRL's copy of an adapter."""

import copy
import math

import pytest
import torch
from transformers import set_seed

import vblora_lab as lab
from tests.cases import CASES, scramble
from vblora_lab.bases import load_base
from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.tuner.adapted import adapted_layers


@pytest.mark.parametrize("topk", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_step_0_is_the_base_model_to_the_bit(name, topk):
    case = CASES[name]
    model = case.ours(topk=topk)
    drawn = [layer.vblora_logits_A["default"].clone() for layer in adapted_layers(model).values()]
    lab.start_at_base(model)
    for layer in adapted_layers(model).values():
        assert not layer.get_delta_weight("default").any()
    assert torch.equal(case.output(model), case.output(case.base()))
    for before, layer in zip(drawn, adapted_layers(model).values(), strict=True):
        after = layer.vblora_logits_A["default"]
        assert torch.equal(before.sort(-1).values, after.sort(-1).values)  # the same numbers
        assert not torch.equal(before, after)
    choice = read_selection(model)
    of_B = choice.sub_vectors.matrix == "B"
    assert (choice.indices[of_B] >= 5).all() and (choice.indices[~of_B] < 5).all()


def test_it_learns_from_there():
    """As in LoRA: in the first step only B's side of the bank, then all of it."""
    case = CASES["opt"]
    model = case.ours()
    lab.start_at_base(model)
    bank = model.base_model.vblora_vector_bank["default"]
    start = bank.detach().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for step in range(3):
        optimizer.zero_grad()
        tokens = case.inputs()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        changed = (bank != start).any(1)
        assert changed[5:].any()
        assert changed[:5].any() == (step > 0)
    rows = torch.linalg.matrix_rank(bank[5:].detach() * 1e3)
    assert rows > 1  # the zeros don't stay copies of one vector


def test_what_can_t_start_there_is_refused():
    model = CASES["opt"].ours(num_vectors=5)
    with pytest.raises(ConfigError, match=r"num_vectors=5.*at least 6") as caught:
        lab.start_at_base(model)
    assert caught.value.field == "num_vectors" and caught.value.suggestion == 6
    with pytest.raises(TargetError, match="'nobody'"):
        lab.start_at_base(model, "nobody")
    config = lab.VBLoRAConfig(**{**CASES["opt"].config, "num_vectors": 5})
    lab.add_adapter(model, "task", config)
    with pytest.raises(ConfigError, match="uses the bank of another"):
        lab.start_at_base(model, "task")


def test_trl_s_reference_is_a_copy_and_other_adapters_are_not():
    model = CASES["opt"].ours()
    scramble(model)
    held = model.peft_config["default"]
    model.add_adapter("ref", held)
    model.add_adapter("third", held)
    model.add_adapter("fourth", copy.deepcopy(held))
    for layer in adapted_layers(model).values():
        A = layer.vblora_logits_A
        assert torch.equal(A["ref"], A["default"]) and not A["ref"].requires_grad
        assert not torch.equal(A["third"], A["default"])
        assert not torch.equal(A["fourth"], A["default"])
    banks = model.base_model.vblora_vector_bank
    assert torch.equal(banks["ref"], banks["default"]) and banks["ref"] is not banks["default"]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["trained", "at base"])
def test_dpo_s_first_loss_is_ln_2(tmp_path, start):
    """Policy and reference are the same model before the first step, whatever its adapter."""
    trl = pytest.importorskip("trl", reason="TRL isn't installed")
    datasets = pytest.importorskip("datasets")
    set_seed(0)
    base = load_base(device="cpu")
    config = lab.VBLoRAConfig(
        target_modules=["q_proj"], num_vectors=16, vector_length=64, task_type="CAUSAL_LM"
    )
    model = lab.get_peft_model(base.model, config)
    if start == "trained":
        scramble(model)
    else:
        lab.start_at_base(model)
    rows = {"prompt": ["name[Aroma] ->"] * 4, "chosen": [" Aroma is nice."] * 4}
    data = datasets.Dataset.from_dict({**rows, "rejected": [" It is cheap, and far away."] * 4})
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[],
        logging_steps=1, disable_tqdm=True, use_cpu=True, bf16=False, learning_rate=0.0,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=base.tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert math.isclose(losses[0], math.log(2), rel_tol=1e-4)


def test_peft_s_reference_is_random_for_trl():
    """TRL copies what has ".default." in its name; the names of VB-LoRA's parameters end in it."""
    model = CASES["opt"].stock()
    model.add_adapter("ref", model.peft_config["default"])
    names = [name for name, _ in model.named_parameters() if "vblora_" in name]
    assert names and not any(".default." in name for name in names)
    bank = model.base_model.vblora_vector_bank
    assert not torch.equal(bank["ref"], bank["default"])
