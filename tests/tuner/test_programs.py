"""Programs written for PEFT, unchanged: what they do on these classes after `register`."""

import copy
import gc
import json
import pickle
import weakref

import peft
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.vblora import VBLoRAModel as StockModel
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, set_seed
from trl import SFTConfig, SFTTrainer

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, VOCABULARY, assert_close, scramble
from vblora_lab.bases import load_base
from vblora_lab.tuner import formats
from vblora_lab.tuner.model import VBLoRAModel

pytestmark = pytest.mark.slow

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROWS = torch.randint(VOCABULARY, (24, 7), generator=torch.Generator().manual_seed(2))
DATA = [{"input_ids": row, "labels": row} for row in ROWS]
only_topk_or_not = pytest.mark.parametrize("only_topk", [False, True], ids=["full", "topk"])


@pytest.fixture(autouse=True)
def _registered():
    lab.register()
    yield
    lab.unregister()


def new_model(only_topk=False):
    """As in any program that uses PEFT."""
    config = peft.VBLoRAConfig(
        **CASES["opt"].config, task_type="CAUSAL_LM", save_only_topk_weights=only_topk
    )
    set_seed(5)
    return peft.get_peft_model(CASES["opt"].base(), config)


def new_trainer(model, folder, steps=4, **arguments):
    arguments = {
        "max_steps": steps,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), **arguments),
        train_dataset=DATA,
        eval_dataset=DATA[:6],
    )


def fields(folder):
    return json.loads((folder / CONFIG).read_text())


def is_compact(folder):
    return formats.is_topk_format(load_file(folder / WEIGHTS))


def output(model):
    return CASES["opt"].output(model.eval())


def assert_same_parameters(one, other):
    other = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other[name]), name


# --- HF Trainer


@only_topk_or_not
def test_a_resumed_run_ends_where_an_unbroken_one_does(only_topk, tmp_path):
    """To the bit, with the base's dropout on, whatever the final export is to be."""
    unbroken = new_trainer(new_model(only_topk), tmp_path)
    assert isinstance(unbroken.model.base_model, VBLoRAModel)
    unbroken.train()
    before = load_file(tmp_path / "checkpoint-2" / WEIGHTS)
    assert not is_compact(tmp_path / "checkpoint-2")
    assert fields(tmp_path / "checkpoint-2")["save_only_topk_weights"] is False

    resumed = new_trainer(new_model(only_topk), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_same_parameters(resumed.model, unbroken.model)
    moved = load_file(tmp_path / "resumed" / "checkpoint-4" / WEIGHTS)
    assert all(not torch.equal(moved[key], tensor) for key, tensor in before.items())

    # What is exported is what the config asks for, and PEFT alone reads it.
    resumed.save_model(str(tmp_path / "by_trainer"))
    resumed.model.save_pretrained(tmp_path / "by_model")
    lab.unregister()
    for folder in (tmp_path / "by_trainer", tmp_path / "by_model", tmp_path / "checkpoint-4"):
        compact = only_topk and folder.name != "checkpoint-4"
        assert is_compact(folder) == fields(folder)["save_only_topk_weights"] == compact
        stock = PeftModel.from_pretrained(CASES["opt"].base(), folder)
        assert isinstance(stock.base_model, StockModel)
        assert_close(output(stock), output(resumed.model), relative=1e-5)
        ours = lab.from_pretrained(CASES["opt"].base(), folder)
        assert_close(output(ours), output(resumed.model), relative=1e-5)


def test_peft_still_can_t_resume_what_is_exported_compact(tmp_path):
    lab.unregister()
    trainer = new_trainer(new_model(only_topk=True), tmp_path)
    assert isinstance(trainer.model.base_model, StockModel)
    trainer.train()
    assert is_compact(tmp_path / "checkpoint-2")
    resumed = new_trainer(new_model(only_topk=True), tmp_path)
    with pytest.raises(RuntimeError, match="Found infinity values in VB-LoRA logits"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    # And such a checkpoint fails here too, at the first step, with the reason.
    lab.register()
    resumed = new_trainer(new_model(only_topk=True), tmp_path)
    with pytest.raises(RuntimeError, match=r"Found infinity values .* stores only the top 3"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@only_topk_or_not
def test_the_best_model_is_loaded_at_the_end(only_topk, tmp_path):
    arguments = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "learning_rate": 3.0,  # so large that the best isn't the last
    }
    trainer = new_trainer(new_model(only_topk), tmp_path, steps=3, **arguments)
    trainer.train()
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert best.name != "checkpoint-3"
    stored = load_file(best / WEIGHTS)
    found = peft.get_peft_model_state_dict(trainer.model)
    if only_topk:
        stored = formats.packed(stored, 3)
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in stored.items())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)
    assert any(parameter.requires_grad for parameter in trainer.model.parameters())


def test_an_adapter_of_another_name_resumes_too(tmp_path):
    def named():
        model = new_model()
        model.add_adapter("task", peft.VBLoRAConfig(**CASES["opt"].config, **compact))
        model.set_adapter("task")
        return new_trainer(model, tmp_path)

    compact = {"task_type": "CAUSAL_LM", "save_only_topk_weights": True}
    unbroken, resumed = named(), named()
    unbroken.train()
    assert not is_compact(tmp_path / "checkpoint-2" / "task")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_parameters(resumed.model, unbroken.model)
    resumed.model.save_pretrained(tmp_path / "final")
    assert is_compact(tmp_path / "final" / "task")
    assert not is_compact(tmp_path / "final")


def test_no_need_to_register_for_a_model_made_here(tmp_path):
    """PEFT's own entries are in force while Trainer saves and loads."""
    lab.unregister()

    def trainer():
        set_seed(5)
        config = peft.VBLoRAConfig(**CASES["opt"].config, save_only_topk_weights=True)
        return new_trainer(lab.get_peft_model(CASES["opt"].base(), config), tmp_path)

    unbroken, resumed = trainer(), trainer()
    unbroken.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_parameters(resumed.model, unbroken.model)
    resumed.save_model(str(tmp_path / "final"))
    assert is_compact(tmp_path / "final")
    assert not is_compact(tmp_path / "checkpoint-4")


# --- TRL


def new_sft_trainer(folder):
    base = load_base("mini-opt", device="cpu")
    sentences = [f"name[The Mill], food[{food}]" for food in ("Thai", "Greek", "Fast", "Fine")]
    config = SFTConfig(
        str(folder),
        max_steps=4,
        save_steps=2,
        max_length=16,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    return SFTTrainer(
        model=base.model,
        args=config,
        train_dataset=Dataset.from_list([{"text": text} for text in sentences * 2]),
        processing_class=base.tokenizer,
        peft_config=peft.VBLoRAConfig(
            task_type="CAUSAL_LM",
            r=2,
            num_vectors=16,
            vector_length=128,
            target_modules=["q_proj", "v_proj"],
            save_only_topk_weights=True,
        ),
    )


def test_sft_trainer_trains_resumes_and_exports(tmp_path):
    set_seed(5)
    unbroken = new_sft_trainer(tmp_path)
    assert isinstance(unbroken.model.base_model, VBLoRAModel)
    start = {name: parameter.clone() for name, parameter in unbroken.model.named_parameters()}
    unbroken.train()
    moved = [n for n, p in unbroken.model.named_parameters() if not torch.equal(p, start[n])]
    assert sorted(moved) == sorted(n for n in start if "vblora_" in n)
    assert not is_compact(tmp_path / "checkpoint-2")
    resumed = new_sft_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_parameters(resumed.model, unbroken.model)
    resumed.save_model(str(tmp_path / "final"))
    assert is_compact(tmp_path / "final")
    tokens = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = resumed.model.eval()(tokens).logits
    lab.unregister()
    stock = PeftModel.from_pretrained(load_base("mini-opt", device="cpu").model, tmp_path / "final")
    assert isinstance(stock.base_model, StockModel)
    assert_close(stock(tokens).logits, expected, relative=1e-4)


# --- what a folder is taken for


def test_only_the_folders_of_trainer_keep_all_logits(tmp_path):
    model = new_model(only_topk=True)
    scramble(model)
    model.add_adapter("task", model.peft_config["default"])
    kept = ["checkpoint-7", "runs/checkpoint-12"]
    compact = ["final", "checkpoint", "checkpoint-best", "old-checkpoint-7", "checkpoint-7-export"]
    for name in kept + compact:
        model.save_pretrained(tmp_path / name)
        for folder in (tmp_path / name, tmp_path / name / "task"):
            assert is_compact(folder) == (name in compact), folder
            assert fields(folder)["save_only_topk_weights"] == (name in compact)
    inside = tmp_path / "checkpoint-8" / "export"  # of the adapter "default": no place of Trainer's
    model.save_pretrained(inside, selected_adapters=["default"])
    assert is_compact(inside)
    assert model.peft_config["default"].save_only_topk_weights is True
    assert not list(tmp_path.rglob("*.new"))
    # The rest of a checkpoint's file is what PEFT wrote.
    full = new_model()
    full.load_state_dict(model.state_dict(), strict=False)
    full.save_pretrained(tmp_path / "full")
    expected = load_file(tmp_path / "full" / WEIGHTS)
    found = load_file(tmp_path / "checkpoint-7" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_checkpoint_of_other_numbers_than_the_model_s_stays_as_it_is(tmp_path):
    """Where a process holds only a part of the parameters, or somebody gives a state dict."""
    model = new_model(only_topk=True)
    state = {key: tensor.flip(-1) for key, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="keeps only the top 3 logits"):
        model.save_pretrained(tmp_path / "checkpoint-1", state_dict=state)
    assert is_compact(tmp_path / "checkpoint-1")
    assert fields(tmp_path / "checkpoint-1")["save_only_topk_weights"] is True
    lab.from_pretrained(CASES["opt"].base(), tmp_path / "checkpoint-1")


def test_a_model_that_lost_its_logits_has_none_to_keep(tmp_path):
    new_model(only_topk=True).save_pretrained(tmp_path / "final")
    model = PeftModel.from_pretrained(CASES["opt"].base(), tmp_path / "final")
    model.save_pretrained(tmp_path / "checkpoint-1")
    assert is_compact(tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_a_copied_model_keeps_its_checkpoints_whole(copied, tmp_path):
    model = copied(new_model(only_topk=True))
    model.save_pretrained(tmp_path / "checkpoint-1")
    assert not is_compact(tmp_path / "checkpoint-1")


def test_a_config_knows_its_model_without_holding_it(tmp_path):
    model = new_model(only_topk=True)
    config = model.peft_config["default"]
    others = copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))
    for other in others:
        assert other == config
        assert other.__dict__ == {k: v for k, v in config.__dict__.items() if k != "_owner"}
        assert "_owner" not in repr(other)
        other.save_pretrained(tmp_path / "checkpoint-1")  # no model, no weights to look at
        assert fields(tmp_path / "checkpoint-1")["save_only_topk_weights"] is True
    assert "_owner" not in config.to_dict()
    model.add_adapter("task", config)
    deleted = model.peft_config["task"]
    model.delete_adapter("task")
    deleted.save_pretrained(tmp_path / "deleted")
    assert fields(tmp_path / "deleted")["save_only_topk_weights"] is True
    gone = weakref.ref(model.base_model)
    del model
    gc.collect()
    assert gone() is None
    config.save_pretrained(tmp_path / "alone")
    assert fields(tmp_path / "alone")["save_only_topk_weights"] is True


# --- what programs know of PEFT's tuner


def test_the_bank_is_where_peft_has_it():
    model = new_model()
    tuner = model.base_model
    bank = tuner.vblora_vector_bank["default"]
    assert bank is model.vblora_vector_bank["default"]
    assert all(
        module.vblora_vector_bank is tuner.vblora_vector_bank
        for module in model.modules()
        if hasattr(module, "vblora_logits_A")
    )
    # Drawing it anew, as PEFT's method does: another parameter, in all layers at once.
    before = output(model)
    for seeded in (model, peft_s_own()):
        torch.manual_seed(9)
        seeded.base_model._init_vblora_vector_bank(seeded.peft_config["default"], "default")
        assert isinstance(seeded.vblora_vector_bank["default"], torch.nn.Parameter)
        if seeded is model:
            drawn = seeded.vblora_vector_bank["default"]
    assert torch.equal(seeded.vblora_vector_bank["default"], drawn)
    assert drawn is not bank
    assert not torch.allclose(output(model), before)


def peft_s_own():
    lab.unregister()
    try:
        return new_model()
    finally:
        lab.register()


def test_the_bank_is_drawn_once_per_adapter(monkeypatch):
    calls = []
    draw = VBLoRAModel._init_vblora_vector_bank
    monkeypatch.setattr(
        VBLoRAModel,
        "_init_vblora_vector_bank",
        lambda self, config, name: (calls.append(name), draw(self, config, name)),
    )
    model = new_model()
    model.add_adapter("task", model.peft_config["default"])
    assert calls == ["default", "task"]


def test_peft_still_draws_the_bank_once_per_layer(monkeypatch):
    calls = []
    draw = StockModel._init_vblora_vector_bank
    monkeypatch.setattr(
        StockModel,
        "_init_vblora_vector_bank",
        lambda self, config, name: (calls.append(name), draw(self, config, name)),
    )
    peft_s_own()
    assert len(calls) == 8  # four modules in each of two layers
