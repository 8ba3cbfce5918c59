"""Leaving logits out changes neither loss nor gradients."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from vblora_lab.bases import share_weights
from vblora_lab.train.completion import completion_logits
from vblora_lab.train.prompts import IGNORED, Collator, encode_all
from vblora_lab.tuner.peft import get_peft_model


@pytest.fixture
def batch(base, task):
    return Collator(base.tokenizer.pad_token_id)(encode_all(base.tokenizer, task.train[:5], 512))


def step(model, batch):
    output = model(**batch)
    output.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return output, gradients


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_the_loss_and_its_gradients_are_the_same(base, config, batch, family):
    torch.manual_seed(0)
    if family == "opt":
        model = get_peft_model(share_weights(base.model), config)
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_embd=32, n_layer=1, n_head=2))
    model.eval()  # no dropout
    whole, expected = step(model, batch)
    with completion_logits(model):
        part, gradients = step(model, batch)
    columns = (batch["labels"][:, 1:] != IGNORED).any(dim=0).sum()
    assert part.logits.shape[1] == columns < whole.logits.shape[1]
    torch.testing.assert_close(part.loss, whole.loss)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert step(model, batch)[0].logits.shape == whole.logits.shape  # outside the block


def test_calls_without_labels_are_as_ever(base, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with completion_logits(base.model), torch.no_grad():
        assert base.model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_a_model_that_can_t_leave_logits_out_is_left_alone(base, batch, monkeypatch):
    forward = type(base.model).forward
    monkeypatch.setattr(
        type(base.model), "forward",
        lambda self, input_ids, attention_mask, labels: forward(
            self, input_ids, attention_mask, labels=labels
        ),
    )  # fmt: skip
    with completion_logits(base.model), torch.no_grad():
        assert base.model(**batch).logits.shape[:2] == batch["input_ids"].shape
