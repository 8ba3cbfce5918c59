"""One bank, many tasks: the same as copying the bank by hand, without the copies."""

import copy
import hashlib
import json
import pickle

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_close, assert_unchanged, scramble, state_of
from vblora_lab.errors import CheckpointError, ConfigError, TargetError
from vblora_lab.tuner import formats
from vblora_lab.tuner.banks import VectorBanks, fingerprint
from vblora_lab.tuner.config import VBLoRAConfig

WEIGHTS, FINGERPRINT = "adapter_model.safetensors", "vblora_bank.json"
BANK = "base_model.vblora_vector_bank"
both_formats = pytest.mark.parametrize("only_topk", [False, True], ids=["full", "topk"])
# Of the second task: another rank, another topk, other modules, of which some are new.
TASK = {"r": 3, "topk": 2, "target_modules": ["v_proj", "k_proj", "fc1"]}


def task_config(**changes):
    return VBLoRAConfig(**{**CASES["opt"].config, **TASK, **changes})


@pytest.fixture
def first(opt_case):
    """A model with one trained adapter."""
    model = opt_case.ours()
    scramble(model)
    return model


@pytest.fixture
def two(first):
    """The same with a second task on the first one's bank, active."""
    lab.add_adapter(first, "task", task_config())
    first.set_adapter("task")
    return first


def banks(model):
    return model.base_model.vblora_vector_bank


def train_a_little(model, case):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(3):
        torch.manual_seed(step)
        optimizer.zero_grad()
        case.output(model.train()).pow(2).mean().backward()
        optimizer.step()
    return case.output(model.eval()).detach()


def test_it_is_the_same_as_copying_the_bank_by_hand(opt_case, two):
    """And freezing the copy by hand, in PEFT's own tuner; before, while and after training."""
    stock = opt_case.stock()
    stock.add_adapter("task", peft.VBLoRAConfig(**{**opt_case.config, **TASK}))
    state = {key: tensor for key, tensor in two.state_dict().items() if "vblora_" in key}
    stock.load_state_dict(state, strict=False)
    stock.set_adapter("task")
    stock.vblora_vector_bank["task"].requires_grad_(False)
    assert stock.vblora_vector_bank["task"] is not stock.vblora_vector_bank["default"]
    assert torch.equal(stock.vblora_vector_bank["task"], banks(two)["default"])

    assert_close(opt_case.output(two), opt_case.output(stock))
    before = opt_case.output(two).detach()
    trained = train_a_little(two, opt_case)
    assert_close(trained, train_a_little(stock, opt_case), relative=1e-5)
    assert not torch.allclose(trained, before, atol=1e-4)
    # The first task is as it was.
    two.set_adapter("default")
    stock.set_adapter("default")
    assert_close(opt_case.output(two), opt_case.output(stock))


def test_logits_alone_are_trained_on_one_parameter(opt_case, two):
    bank = banks(two)["default"]
    assert banks(two)["task"] is bank
    assert sum(parameter is bank for parameter in two.parameters()) == 1
    before = bank.detach().clone()
    train_a_little(two, opt_case)
    assert bank.grad is None
    assert torch.equal(bank, before)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in two.parameters())
    trained = {name for name, parameter in two.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("vblora_logits" in name and name.endswith(".task") for name in trained)


def test_the_bank_stays_frozen_whatever_is_done(opt_case, two, tmp_path):
    def frozen():
        return not banks(two)["task"].requires_grad

    assert frozen()
    for name in ("default", "task"):
        two.set_adapter(name)
        assert frozen()
        two.set_requires_grad(name)
        assert frozen()
        for layer in two.modules():
            if hasattr(layer, "vblora_logits_A"):
                layer.set_adapter(name)
        assert frozen()
    two.base_model.set_adapter(["task", "default"])
    assert frozen()
    two.set_adapter("task")
    two.train()
    with two.disable_adapter():
        opt_case.output(two)
    assert frozen()
    two.to(torch.bfloat16).to(torch.float32)
    assert frozen()
    assert banks(two)["task"] is banks(two)["default"]
    two.add_adapter("third", VBLoRAConfig(**{**opt_case.config, "target_modules": ["out_proj"]}))
    assert frozen()
    two.save_pretrained(tmp_path)
    two.load_adapter(tmp_path / "task", "task", is_trainable=True)
    two.load_adapter(tmp_path, "default", is_trainable=True)
    with lab.using():
        two.load_adapter(tmp_path, "default", low_cpu_mem_usage=True)
    assert frozen()
    assert banks(two)["task"] is banks(two)["default"]
    for other in (copy.deepcopy(two), pickle.loads(pickle.dumps(two))):
        other.set_adapter("task")
        assert banks(other)["task"] is banks(other)["default"]
        assert banks(other)["task"] is not banks(two)["task"]
        assert not banks(other)["task"].requires_grad
    # The third adapter has a bank of its own, which is trained.
    two.set_adapter("third")
    assert banks(two)["third"].requires_grad
    assert frozen()


def test_either_can_be_deleted(opt_case, two):
    scramble(two)
    expected = opt_case.output(two).detach()
    other = copy.deepcopy(two)
    two.delete_adapter("default")
    assert list(banks(two)) == ["task"]
    two.set_adapter("task")
    assert not banks(two)["task"].requires_grad
    assert_close(opt_case.output(two), expected)
    train_a_little(two, opt_case)

    # Once nobody else uses it, the first task trains its bank again.
    other.delete_adapter("task")
    other.set_adapter("default")
    assert list(banks(other)) == ["default"]
    assert banks(other)["default"].requires_grad


# --- files


@both_formats
def test_its_files_hold_no_bank_and_find_it(opt_case, first, only_topk, tmp_path):
    lab.add_adapter(first, "task", task_config(save_only_topk_weights=only_topk))
    scramble(first)
    first.set_adapter("task")
    expected = opt_case.output(first)
    first.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "task" / WEIGHTS)
    assert BANK not in stored
    assert BANK in load_file(tmp_path / WEIGHTS)
    assert formats.is_topk_format(stored) == only_topk
    assert (tmp_path / "task" / FINGERPRINT).is_file()
    assert not (tmp_path / FINGERPRINT).exists()
    tuner = first.base_model
    size = sum(tensor.nbytes for tensor in stored.values())
    assert tuner.stored_bytes("task") == size
    assert tuner.get_nb_savable_parameters("task") == (size // 4, 0)
    header = int.from_bytes((tmp_path / "task" / WEIGHTS).read_bytes()[:8], "little")
    assert (tmp_path / "task" / WEIGHTS).stat().st_size == 8 + header + size
    fields = json.loads((tmp_path / "task" / "adapter_config.json").read_text())
    assert fields.keys() == json.loads((tmp_path / "adapter_config.json").read_text()).keys()

    # Beside the adapter that has the bank: the same parameter.
    model = lab.from_pretrained(opt_case.base(), tmp_path)
    assert lab.from_pretrained(model, tmp_path / "task", "renamed") is model
    assert banks(model)["renamed"] is banks(model)["default"]
    assert model.active_adapters == ["default"]
    model.set_adapter("renamed")
    assert_close(opt_case.output(model), expected, relative=1e-4)
    # Alone, with the bank given as a folder or as numbers.
    for bank in (tmp_path, str(tmp_path), banks(first)["default"]):
        alone = lab.from_pretrained(opt_case.base(), tmp_path / "task", bank=bank)
        assert list(banks(alone)) == ["default"]
        assert_close(opt_case.output(alone), expected, relative=1e-4)
        assert not any(parameter.requires_grad for parameter in alone.parameters())
        assert not alone.training
    # What was loaded is stored as it was.
    alone.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert again.keys() == stored.keys()
    assert (tmp_path / "again" / FINGERPRINT).read_text() == (
        tmp_path / "task" / FINGERPRINT
    ).read_text()


@pytest.mark.parametrize("onto_a_model", [False, True])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_training_goes_on_from_its_files(opt_case, two, onto_a_model, low_cpu_mem_usage, tmp_path):
    two.save_pretrained(tmp_path)
    name = "task" if onto_a_model else "default"
    model = lab.from_pretrained(opt_case.base(), tmp_path) if onto_a_model else opt_case.base()
    loaded = lab.from_pretrained(
        model,
        tmp_path / "task",
        name,
        is_trainable=True,
        bank=tmp_path,
        low_cpu_mem_usage=low_cpu_mem_usage,
    )
    loaded.set_adapter(name)
    assert not banks(loaded)[name].requires_grad
    assert_close(train_a_little(loaded, opt_case), train_a_little(two, opt_case))


def test_the_wrong_bank_and_none_at_all(opt_case, two, tmp_path):
    two.save_pretrained(tmp_path / "good")
    folder = tmp_path / "good" / "task"
    stranger = opt_case.ours()
    stranger.save_pretrained(tmp_path / "stranger")

    def refused(model, match, error=CheckpointError, **kwargs):
        before = state_of(model)
        with pytest.raises(error, match=match):
            lab.from_pretrained(model, folder, "task", **kwargs)
        assert_unchanged(model, before)

    for model in (opt_case.base(), stranger):
        there = "'default'" if model is stranger else "none"
        refused(model, rf"stored without its bank .*\(adapters: {there}\)\. Give bank=")
        refused(model, "bank: is another one than", bank=tmp_path / "stranger")
        refused(model, "has no bank: its adapter uses that of another", bank=folder)
        refused(model, "bank: is another one", bank=torch.zeros(10, 4))
    assert list(banks(stranger)) == ["default"]
    assert banks(stranger)["default"].requires_grad
    (folder / FINGERPRINT).write_text("{}")
    refused(opt_case.base(), "is damaged", bank=tmp_path / "good")
    (folder / FINGERPRINT).unlink()
    refused(opt_case.base(), "no vblora_bank.json", bank=tmp_path / "good")
    folder = tmp_path / "good"
    refused(opt_case.base(), "has a bank of its own", ConfigError, bank=tmp_path / "good")


def test_a_failed_load_shares_nothing(opt_case, first, monkeypatch, tmp_path):
    lab.add_adapter(first, "task", task_config())
    first.save_pretrained(tmp_path)
    model = opt_case.ours(target_modules=["out_proj"])  # no layer in common with the task
    lab.from_pretrained(model, tmp_path, "first")

    def fails(*args, **kwargs):
        raise OSError("disk gone")

    monkeypatch.setattr("peft.peft_model.load_peft_weights", fails)
    before = state_of(model)
    with pytest.raises(OSError, match="disk gone"):
        lab.from_pretrained(model, tmp_path / "task", "task")
    assert_unchanged(model, before)
    assert list(banks(model)) == list(model.peft_config) == ["default", "first"]
    assert not banks(model).fingerprints


def test_another_bank_never_comes_in_by_the_back_door(opt_case, two, tmp_path):
    """Loading over an adapter would change those that share its bank."""
    other = opt_case.ours()
    other.save_pretrained(tmp_path)
    with lab.using():
        before = state_of(two)
        with pytest.raises(CheckpointError, match="shares with other adapters"):
            two.load_adapter(tmp_path, "default")
        assert_unchanged(two, before)
        # And without this package's loader there is no bank to be found, but an error.
        two.save_pretrained(tmp_path / "two")
        with pytest.raises(CheckpointError, match="vector_bank is missing"):
            PeftModel.from_pretrained(opt_case.base(), tmp_path / "two" / "task")


def test_half_precision_changes_neither_bank_nor_fingerprint(opt_case, tmp_path):
    model = lab.get_peft_model(opt_case.base().bfloat16(), VBLoRAConfig(**opt_case.config))
    scramble(model)
    assert banks(model)["default"].dtype == torch.float32
    before = banks(model)["default"].detach().clone()
    lab.add_adapter(model, "task", task_config(), autocast_adapter_dtype=False)
    assert torch.equal(banks(model)["default"], before)
    model.save_pretrained(tmp_path)
    model.set_adapter("task")
    expected = opt_case.output(model)
    model.load_adapter(tmp_path / "task", "task", autocast_adapter_dtype=False)
    assert torch.equal(banks(model)["default"], before)  # no bfloat16 numbers, though the base's
    assert_close(opt_case.output(model), expected)
    model.to(torch.bfloat16)  # the fingerprint is that of the bank as it was stored
    model.save_pretrained(tmp_path / "rounded")
    fingerprints = [
        json.loads((folder / "task" / FINGERPRINT).read_text())["sha256"]
        for folder in (tmp_path, tmp_path / "rounded")
    ]
    assert fingerprints == [fingerprint(before)] * 2
    loaded = lab.from_pretrained(opt_case.base().bfloat16(), tmp_path)
    lab.from_pretrained(loaded, tmp_path / "task", "task")
    loaded.set_adapter("task")
    assert_close(opt_case.output(loaded).float(), expected.float(), relative=0.02)


# --- PEFT alone


@both_formats
def test_with_its_bank_it_is_an_adapter_for_peft(opt_case, first, only_topk, tmp_path):
    lab.add_adapter(first, "task", task_config(save_only_topk_weights=only_topk))
    scramble(first)
    first.set_adapter("task")
    first.save_pretrained(tmp_path)
    folder = lab.save_with_bank(first, tmp_path, "task")  # into the same place
    assert folder == tmp_path / "task"
    assert not (folder / FINGERPRINT).exists()
    stock = PeftModel.from_pretrained(opt_case.base(), folder)
    assert_close(opt_case.output(stock), opt_case.output(first), relative=1e-4)
    ours = lab.from_pretrained(opt_case.base(), folder)
    assert_close(opt_case.output(ours), opt_case.output(first), relative=1e-4)
    # The model still shares; an adapter of its own bank is stored as ever.
    first.save_pretrained(tmp_path / "later")
    assert BANK not in load_file(tmp_path / "later" / "task" / WEIGHTS)
    assert lab.save_with_bank(first, tmp_path / "whole") == tmp_path / "whole"
    with pytest.raises(ConfigError, match="no adapter is called 'tusk'"):
        lab.save_with_bank(first, tmp_path, "tusk")
    with pytest.raises(TargetError, match="made by vblora_lab"):
        lab.save_with_bank(opt_case.stock(), tmp_path)


def test_peft_still_makes_up_a_missing_bank_in_silence(opt_case, two, recwarn, tmp_path):
    """Why `save_with_bank` is there."""
    scramble(two)
    two.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(opt_case.base(), tmp_path / "task")
    assert not torch.allclose(opt_case.output(stock), opt_case.output(two), atol=0.1)
    assert not [warning for warning in recwarn if "bank" in str(warning.message)]


@both_formats
def test_trainer_trains_and_resumes_the_second_task(opt_case, only_topk, tmp_path):
    def trainer():
        set_seed(5)
        model = opt_case.ours()
        lab.add_adapter(model, "task", task_config(save_only_topk_weights=only_topk))
        model.set_adapter("task")
        rows = opt_case.inputs(12)
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=4,
            save_steps=2,
            learning_rate=0.05,
            lr_scheduler_type="constant",
            per_device_train_batch_size=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        data = [{"input_ids": row, "labels": row} for row in rows]
        return Trainer(model=model, args=arguments, train_dataset=data)

    unbroken, resumed = trainer(), trainer()
    before = banks(unbroken.model)["task"].detach().clone()
    unbroken.train()
    # A checkpoint is complete in itself: all logits, and the bank.
    stored = load_file(tmp_path / "checkpoint-2" / "task" / WEIGHTS)
    assert torch.equal(stored[BANK], before)
    assert not formats.is_topk_format(stored)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    ends = dict(unbroken.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, ends[name]), name
    assert torch.equal(banks(resumed.model)["task"], before)
    resumed.model.save_pretrained(tmp_path / "final")
    stored = load_file(tmp_path / "final" / "task" / WEIGHTS)
    assert BANK not in stored
    assert formats.is_topk_format(stored) == only_topk


# --- other ways to a bank


def test_a_new_model_on_a_stored_bank(opt_case, first, tmp_path):
    first.save_pretrained(tmp_path)
    held = banks(first)["default"]
    for bank in (tmp_path, held, held.detach().half()):
        model = lab.get_peft_model(opt_case.base(), task_config(), bank=bank)
        own = banks(model)["default"]
        assert own.dtype == torch.float32
        assert own.data_ptr() != held.data_ptr()
        assert torch.equal(own, (bank if isinstance(bank, torch.Tensor) else held).float())
        before = own.detach().clone()
        train_a_little(model, opt_case)
        assert torch.equal(own, before)
    model.save_pretrained(tmp_path / "task")
    assert BANK not in load_file(tmp_path / "task" / WEIGHTS)


def test_a_copy_of_the_bank_to_train(opt_case, first, tmp_path):
    lab.add_adapter(first, "task", task_config(), freeze_bank=False)
    assert torch.equal(banks(first)["task"], banks(first)["default"])
    first.set_adapter("task")
    other = lab.get_peft_model(
        opt_case.base(), task_config(), bank=banks(first)["default"], freeze_bank=False
    )
    for model, name in ((first, "task"), (other, "default")):
        before = banks(model)[name].detach().clone()
        train_a_little(model, opt_case)
        assert not torch.equal(banks(model)[name], before)
        model.save_pretrained(tmp_path, selected_adapters=[name])
    assert BANK in load_file(tmp_path / WEIGHTS)
    assert BANK in load_file(tmp_path / "task" / WEIGHTS)
    assert not list(tmp_path.rglob(FINGERPRINT))


def test_a_chain_of_tasks_names_the_first_bank(opt_case, two, tmp_path):
    lab.add_adapter(two, "third", task_config(), bank_of="task")
    assert banks(two)["third"] is banks(two)["default"]
    two.delete_adapter("default")
    two.delete_adapter("task")
    two.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "third" / FINGERPRINT).read_text()) == {
        "sha256": fingerprint(banks(two)["third"])
    }


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        ({"num_vectors": 12}, {}, r"num_vectors=12: the .*bank.* set num_vectors=10"),
        ({"vector_length": 2}, {}, r"vector_length=2: the .*bank.* set vector_length=4"),
        ({}, {"bank_of": "nobody"}, "bank_of='nobody'.*'default'"),
        ({"target_modules": ["q_prj"]}, {}, "q_proj"),
    ],
)
def test_what_can_t_share_is_told_before_anything_is_changed(
    opt_case, first, changes, options, match
):
    before = state_of(first)
    with pytest.raises((ConfigError, TargetError), match=match):
        lab.add_adapter(first, "task", task_config(**changes), **options)
    assert_unchanged(first, before)
    assert list(first.peft_config) == list(banks(first)) == ["default"]
    assert banks(first)["default"].requires_grad
    assert not banks(first).fingerprints
    if not options:
        base = opt_case.base()
        before = state_of(base)
        with pytest.raises((ConfigError, TargetError), match=match):
            lab.get_peft_model(base, task_config(**changes), bank=banks(first)["default"])
        assert_unchanged(base, before)


def test_what_is_no_bank(opt_case, first):
    for bank, match in (
        (torch.zeros(10), "must be floats of shape"),
        (torch.zeros(10, 4, dtype=torch.int), "must be floats"),
        (torch.full((10, 4), torch.nan), "NaN or infinite"),
        ("nowhere", "there is no folder nowhere"),
    ):
        base = opt_case.base()
        with pytest.raises((ConfigError, CheckpointError), match=match):
            lab.get_peft_model(base, task_config(), bank=bank)
        assert not any(isinstance(module, nn.ParameterDict) for module in base.modules())
    with pytest.raises(ConfigError, match=r"freeze_bank=True: .* give bank= too"):
        lab.get_peft_model(opt_case.base(), task_config(), freeze_bank=True)
    with pytest.raises(TargetError, match="made by vblora_lab"):
        lab.add_adapter(opt_case.stock(), "task", task_config())
    with pytest.raises(ConfigError, match="is taken"):
        lab.add_adapter(first, "default", task_config())


def test_a_fingerprint_is_that_of_the_float32_numbers():
    bank = torch.tensor([[0.5, -2.0]])
    # By hand: 0.5 is 3f000000 and -2 is c0000000, little-endian.
    expected = hashlib.sha256(bytes.fromhex("0000003f000000c0")).hexdigest()
    assert fingerprint(bank) == fingerprint(bank.bfloat16()) == expected
    assert fingerprint(bank.T.contiguous().T) == expected
    assert fingerprint(-bank) != expected


def test_a_bank_in_half_precision_is_shared_by_what_it_is_now(opt_case):
    base = opt_case.base().half()
    config = VBLoRAConfig(**opt_case.config)
    model = lab.get_peft_model(base, config, autocast_adapter_dtype=False)
    lab.add_adapter(model, "task", task_config(), autocast_adapter_dtype=False)
    held = banks(model)
    assert held["task"] is held["default"] and held["task"].dtype == torch.float16
    assert held.fingerprints == {"task": fingerprint(held["default"])}
    lab.add_adapter(model, "third", task_config(), bank_of="task", autocast_adapter_dtype=False)
    assert held.fingerprints["third"] == held.fingerprints["task"]


def test_whoever_shares_a_rounded_bank_is_known_by_the_bank_that_was_stored(opt_case):
    stored = torch.randn(opt_case.config["num_vectors"], opt_case.config["vector_length"])
    model = lab.get_peft_model(opt_case.base(), task_config(), bank=stored).half()
    lab.add_adapter(model, "task", task_config(), autocast_adapter_dtype=False)
    held = banks(model)
    assert held["task"] is held["default"] and held["task"].dtype == torch.float16
    assert held.fingerprints == {name: fingerprint(stored) for name in ("default", "task")}


@pytest.mark.parametrize("own", ["cpu", "meta"])
def test_a_copied_bank_is_where_the_adapter_is_or_else_where_it_came_from(own):
    held = VectorBanks()
    held["new"] = nn.Parameter(torch.zeros(4, 2, device=own))
    held.start_from("new", torch.ones(4, 2))
    assert held["new"].device.type == "cpu" and held["new"].eq(1).all()
    held["new"] = nn.Parameter(torch.zeros(4, 2, device=own))
    held.share("new", torch.ones(4, 2))
    assert held["new"].device.type == "cpu" and held["new"].eq(1).all()
