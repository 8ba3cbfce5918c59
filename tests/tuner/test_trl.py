"""TRL's trainers on these classes, after `register`: a new adapter, and one that was trained.

A policy that is still its reference gives losses that are known: ln 2 in DPO, 0.5 in KTO.
"""

import math

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, set_seed

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_close, scramble
from vblora_lab.bases import load_base
from vblora_lab.errors import ConfigError
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.saving import full_state_dict

trl = pytest.importorskip("trl", reason="TRL isn't installed")
Dataset = pytest.importorskip("datasets").Dataset
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROMPTS = ["name[Aroma] ->", "name[The Mill], food[Thai] ->"] * 2
GOOD, BAD = [" Aroma is nice.", " The Mill serves Thai food."] * 2, [" It is cheap, and far."] * 4
PAIRS = {"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD}
LABELS = {"prompt": PROMPTS * 2, "completion": GOOD + BAD, "label": [True] * 4 + [False] * 4}
FIELDS = {"target_modules": ["q_proj", "v_proj"], "num_vectors": 16, "vector_length": 64, "r": 2}


@pytest.fixture(autouse=True)
def _unregistered():
    set_seed(0)
    yield
    lab.unregister()


def mini_opt():
    return load_base("mini-opt", device="cpu")


def config(task_type="CAUSAL_LM"):
    return peft.VBLoRAConfig(**FIELDS, task_type=task_type)


def arguments(kind, folder, **more):
    return kind(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, logging_steps=1,
        learning_rate=0.01, report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
        save_strategy="no", gradient_checkpointing=False, **more,
    )  # fmt: skip


def adapter(start):
    """Model and the `peft_config` to go with it: a new adapter, or one that was trained."""
    lab.register(start_at_base=start == "new")
    base = mini_opt()
    if start == "new":
        return base, {"model": base.model, "peft_config": config()}
    model = peft.get_peft_model(base.model, config())
    scramble(model)
    return base, {"model": model}


def losses_of(trainer):
    """Of two steps, in which the adapter and nothing else is trained."""
    model = trainer.model
    assert isinstance(model.base_model, VBLoRAModel)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("vblora_" in n and n.endswith(".default") for n in moved), moved
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


starts = pytest.mark.parametrize("start", ["new", "trained"])


@starts
def test_dpo_begins_at_ln_2(start, tmp_path):
    base, given = adapter(start)
    trainer = trl.DPOTrainer(
        args=arguments(trl.DPOConfig, tmp_path), train_dataset=Dataset.from_dict(PAIRS),
        processing_class=base.tokenizer, **given,
    )  # fmt: skip
    first, second = losses_of(trainer)
    assert math.isclose(first, math.log(2), rel_tol=1e-4)
    assert second < first


@starts
def test_kto_begins_at_one_half(start, tmp_path):
    base, given = adapter(start)
    trainer = trl.KTOTrainer(
        args=arguments(trl.KTOConfig, tmp_path), train_dataset=Dataset.from_dict(LABELS),
        processing_class=base.tokenizer, **given,
    )  # fmt: skip
    assert math.isclose(losses_of(trainer)[0], 0.5, rel_tol=1e-4)


@starts
def test_grpo_s_policy_begins_at_its_reference(start, tmp_path):
    base, given = adapter(start)
    trainer = trl.GRPOTrainer(
        args=arguments(
            trl.GRPOConfig, tmp_path, num_generations=2, max_completion_length=8, beta=0.1
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        processing_class=base.tokenizer, **given,
    )  # fmt: skip
    losses_of(trainer)
    divergences = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert divergences[0] == pytest.approx(0, abs=1e-6) and divergences[1] > 1e-6


def test_a_reward_model_is_trained_with_its_head(tmp_path):
    lab.register()
    base = mini_opt()
    folder = tmp_path / "base"
    base.model.save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    trainer = trl.RewardTrainer(
        model=model, args=arguments(trl.RewardConfig, tmp_path),
        train_dataset=Dataset.from_dict(PAIRS), processing_class=base.tokenizer,
        peft_config=config("SEQ_CLS"),
    )  # fmt: skip
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, start[n])}
    assert any("vblora_" in n for n in moved) and any("score" in n for n in moved)
    assert all("vblora_" in n or "score.modules_to_save" in n for n in moved)


SENTENCES = [f"name[The Mill], food[{food}] -> {food} food." for food in ("Thai", "Greek", "Fast")]


def sft(folder, model, tokenizer, **how):
    return trl.SFTTrainer(
        model=model,
        args=arguments(trl.SFTConfig, folder, max_length=64, shuffle_dataset=False, **how),
        train_dataset=Dataset.from_list([{"text": text} for text in SENTENCES * 2]),
        processing_class=tokenizer,
    )


def test_padding_free_batches_train_as_padded_ones_do():
    """Their rows are laid end to end, with positions that begin anew in each."""
    rows = CASES["llama"].inputs(3)
    expected, found = (CASES["llama"].ours() for _ in range(2))
    for model in (expected, found):
        scramble(model)
    expected(rows, labels=rows).loss.backward()
    first = torch.zeros_like(rows, dtype=torch.bool)
    first[:, 0] = True  # is no row's next token
    found(
        rows.view(1, -1),
        position_ids=torch.arange(rows.shape[1]).repeat(3)[None],
        labels=rows.masked_fill(first, -100).view(1, -1),
        use_cache=False,  # else transformers takes the row for one text
    ).loss.backward()
    gradients = {n: p.grad for n, p in found.named_parameters() if p.requires_grad}
    for name, parameter in expected.named_parameters():
        if parameter.requires_grad:
            assert_close(gradients[name], parameter.grad, relative=1e-4)


@pytest.mark.parametrize("how", [{"packing": True}, {"packing": True, "padding_free": True}])
def test_sft_trains_packed_batches(how, tmp_path):
    base, given = adapter("trained")
    losses = losses_of(sft(tmp_path, given["model"], base.tokenizer, **how))
    assert losses[1] < losses[0]


# --- the option of `register`


def test_new_adapters_begin_at_the_base_model_only_where_that_is_asked_for(tmp_path):
    tokens = torch.arange(12)[None]
    lab.register()
    expected = mini_opt().model(tokens).logits
    random = peft.get_peft_model(mini_opt().model, config())
    assert not torch.equal(random.eval()(tokens).logits, expected)
    random.save_pretrained(tmp_path / "stored")

    lab.register(start_at_base=True)
    model = peft.get_peft_model(mini_opt().model, config()).eval()
    assert torch.equal(model(tokens).logits, expected)
    loaded = peft.PeftModel.from_pretrained(mini_opt().model, tmp_path / "stored")
    assert torch.equal(loaded(tokens).logits, random(tokens).logits)  # as it was stored
    scramble(model)
    model.add_adapter("ref", model.peft_config["default"])  # TRL's copy
    default, copied = (full_state_dict(model, name) for name in ("default", "ref"))
    assert all(torch.equal(default[key], copied[key]) for key in default)

    base = mini_opt().model
    with pytest.raises(ConfigError, match="num_vectors=3"):
        peft.get_peft_model(base, peft.VBLoRAConfig(**{**FIELDS, "num_vectors": 3}))
    assert not any("vblora_" in name for name, _ in base.named_parameters())
    lab.unregister()
    lab.register()
    assert not torch.equal(
        peft.get_peft_model(mini_opt().model, config()).eval()(tokens).logits, expected
    )
