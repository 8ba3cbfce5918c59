"""Heads, experts and wrapped models: what a config leaves out, or can't be about, is said."""

import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForSequenceClassification,
)

import vblora_lab as lab
from tests.cases import CASES, SMALL, assert_unchanged, scramble, state_of
from vblora_lab.errors import TargetError

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "vocab_size": 40,
}  # fmt: skip


def bert():
    return BertForSequenceClassification(BertConfig(**SIZES))


def qwen():
    more = {"num_experts": 4, "moe_intermediate_size": 8, "num_key_value_heads": 2, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **more))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_key_value_heads=2))


def config(targets, **changes):
    return lab.VBLoRAConfig(**{**SMALL, "target_modules": targets, **changes})


def test_a_new_head_that_nobody_trains_is_said():
    with pytest.warns(UserWarning, match="'classifier' of this Bert.*task_type='SEQ_CLS'"):
        lab.get_peft_model(bert(), config(["query"]))
    plan = lab.plan(bert(), config(["query"]))
    assert plan.fits and "neither trained nor stored" in plan.cautions[0].message
    assert "neither trained nor stored" in " ".join(str(plan).split())
    assert "neither trained nor stored" in plan._repr_html_()


def test_a_part_beside_the_head_that_peft_does_not_store_is_said_and_matters(tmp_path):
    """Each process draws DeBERTa's pooler anew, so one file would mean something else there."""

    def deberta(seed):
        torch.manual_seed(0)
        model = DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES))
        torch.manual_seed(seed)  # what a checkpoint of the body alone would leave to chance
        for name in ("pooler", "classifier"):
            for parameter in getattr(model, name).parameters():
                nn.init.normal_(parameter)
        return model.eval()

    tokens = torch.arange(12).view(2, 6)
    of_task = config(["query_proj"], task_type="SEQ_CLS", save_only_topk_weights=True)
    with pytest.warns(UserWarning, match="'pooler' of this Deberta.*another one where the adapter"):
        lab.get_peft_model(deberta(1), of_task)
    caution = lab.plan(deberta(1), of_task).cautions[0]
    assert caution.suggestion == ["pooler"]
    for more, is_same in ([], False), (caution.suggestion, True):
        own = config(["query_proj"], task_type="SEQ_CLS", modules_to_save=more or None)
        with warnings.catch_warnings():
            warnings.simplefilter("error" if more else "ignore")
            model = lab.get_peft_model(deberta(1), own).eval()
        model.save_pretrained(tmp_path / str(is_same))
        theirs = peft.PeftModel.from_pretrained(deberta(2), tmp_path / str(is_same)).eval()
        with torch.no_grad():
            assert (
                torch.allclose(theirs(tokens).logits, model(tokens).logits, rtol=1e-3, atol=1e-4)
                is is_same
            )


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_heads_of_another_name_are_said_and_those_that_peft_finds_by_their_ending_are_not(
    task_type,
):
    t5 = T5ForSequenceClassification(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=40)
    )
    caution = lab.plan(t5, config(["q"], task_type=task_type)).cautions[0]
    assert caution.suggestion == ["classification_head"]
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 40}
    distilbert = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    cautions = lab.plan(distilbert, config(["q_lin"], task_type=task_type)).cautions
    about_heads = [caution for caution in cautions if caution.field == "modules_to_save"]
    assert len(about_heads) == (0 if task_type else 2)  # PEFT takes pre_classifier for a classifier


@pytest.mark.parametrize("fields", [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["classifier"]}])
def test_one_that_is_trained_isn_t(fields):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = lab.get_peft_model(bert(), config(["query"], **fields))
    assert model.base_model.model.classifier.modules_to_save["default"].weight.requires_grad


@pytest.mark.parametrize("make", [qwen, mixtral])
def test_the_weights_of_experts_are_named_as_such(make):
    with pytest.raises(TargetError) as caught:
        lab.get_peft_model(make(), config(["q_proj", "down_proj"]))
    message = str(caught.value)
    assert "down_proj in model.layers.0.mlp.experts is a parameter" in message
    assert message.count("'o_proj'") <= 1 and message.count("'v_proj'") <= 1


@pytest.mark.parametrize("make", [qwen, mixtral])
def test_all_linear_says_that_it_leaves_the_experts_out(make):
    with pytest.warns(UserWarning, match="experts of this model are not adapted.*gate_up_proj"):
        lab.get_peft_model(make(), config("all-linear"))
    assert "experts" in lab.plan(make(), config("all-linear")).cautions[0].message
    assert "experts" not in str(lab.plan(make(), config(["q_proj"])).cautions)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "parallel"])
def test_what_wraps_a_model_is_not_adapted(wrap):
    base = CASES["opt"].base()
    wrapped = wrap(base)
    before = state_of(base)
    fields = CASES["opt"].config
    for attempt in (
        lambda: lab.get_peft_model(wrapped, lab.VBLoRAConfig(**fields)),
        lambda: lab.plan(wrapped, lab.VBLoRAConfig(**fields)),
    ):
        with pytest.raises(TargetError, match=r"Adapt the model inside, model\.(_orig_mod|module)"):
            attempt()
    with lab.using(), pytest.raises(TargetError, match="Adapt the model inside"):
        peft.get_peft_model(wrapped, peft.VBLoRAConfig(**fields))
    assert_unchanged(base, before)


def test_tensor_parallel_is_refused_by_name():
    """Loading such a model takes several GPUs; transformers notes it in this attribute."""
    base = CASES["llama"].base()
    base._tp_size = 2
    before = state_of(base)
    with pytest.raises(TargetError, match="tensor parallel, tp_plan"):
        lab.get_peft_model(base, lab.VBLoRAConfig(**CASES["llama"].config))
    assert_unchanged(base, before)


@pytest.mark.parametrize("only_topk", [False, True])
def test_the_state_dict_of_a_compiled_model_is_that_of_the_model(only_topk):
    model = CASES["opt"].ours(
        bias="all", modules_to_save=["lm_head"], save_only_topk_weights=only_topk
    )
    scramble(model)
    with lab.using():
        plain = peft.get_peft_model_state_dict(model)
        compiled = peft.get_peft_model_state_dict(torch.compile(model))
    assert plain.keys() == compiled.keys()
    assert all(torch.equal(plain[key], compiled[key]) for key in plain)


def test_peft_still_can_t_read_a_compiled_model():
    model = CASES["opt"].stock()
    with pytest.raises(KeyError):
        peft.get_peft_model_state_dict(torch.compile(model))
