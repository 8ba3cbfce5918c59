"""Families of models by PEFT's default targets: adapt, train, store, and load in PEFT itself."""

from types import SimpleNamespace

import peft
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import vblora_lab.tuner.peft as lab
from tests.cases import SMALL, assert_close, scramble
from vblora_lab.planning.plan import plan
from vblora_lab.tuner.config import VBLoRAConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:Could not find a config file", "ignore:fan_in_fan_out", "ignore:.*`loss_type=None`"
)
IDS = torch.randint(2, 40, (3, 7), generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 1, 1])
ENCODER = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
ENCODER |= {"num_attention_heads": 2, "max_position_embeddings": 32}


def family(make, endings, task, labels=IDS):
    return SimpleNamespace(make=make, endings=endings, task=task, labels=labels)


FAMILIES = {
    "opt": family(
        lambda: OPTForCausalLM(
            OPTConfig(vocab_size=40, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32,
                      num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32)
        ), {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}, "CAUSAL_LM",
    ),
    "gpt2": family(
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        ), {"c_attn"}, "CAUSAL_LM",
    ),
    "llama": family(
        lambda: LlamaForCausalLM(LlamaConfig(**ENCODER, num_key_value_heads=1)),
        {"q_proj", "v_proj"}, "CAUSAL_LM",
    ),
    "bert": family(
        lambda: BertForSequenceClassification(BertConfig(**ENCODER)),
        {"query", "value"}, "SEQ_CLS", CLASSES,
    ),
    "bert without a task": family(
        lambda: BertForMaskedLM(BertConfig(**ENCODER)), {"query", "value"}, None
    ),
    "roberta": family(
        lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)),
        {"query", "value"}, "SEQ_CLS", CLASSES,
    ),
    "t5": family(
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                     decoder_start_token_id=0)
        ), {"q", "k", "v", "o", "wi", "wo"}, "SEQ_2_SEQ_LM",
    ),
}  # fmt: skip


@pytest.mark.parametrize("only_topk", [False, True], ids=["full", "topk"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_works_by_default_targets(name, only_topk, tmp_path):
    family = FAMILIES[name]

    def base():
        torch.manual_seed(0)
        return family.make().eval()

    config = VBLoRAConfig(**SMALL, task_type=family.task, save_only_topk_weights=only_topk)
    planned = plan(base(), config)
    model = lab.get_peft_model(base(), config)
    scramble(model)
    names = model.base_model.targeted_module_names
    assert {full.rpartition(".")[2] for full in names} == family.endings
    assert [target.name for target in planned.targets] == names
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert planned.trained_parameters == sum(p.numel() for p in trained.values())

    model(input_ids=IDS, labels=family.labels).loss.backward()
    assert not [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    torch.optim.SGD(trained.values(), lr=0.1).step()

    with torch.no_grad():
        expected = model(input_ids=IDS, labels=family.labels).logits
        with model.disable_adapter():
            plain = model(input_ids=IDS, labels=family.labels).logits
    assert (expected - plain).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    for load in (peft.PeftModel.from_pretrained, lab.from_pretrained):
        loaded = load(base(), tmp_path).eval()
        with torch.no_grad():
            logits = loaded(input_ids=IDS, labels=family.labels).logits
        assert_close(logits, expected, relative=1e-5)
