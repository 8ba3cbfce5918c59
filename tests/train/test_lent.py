"""What a Trainer does to a model that is lent to it ends with the loan."""

import copy

import peft
import pytest
import torch

from tests.cases import assert_close
from vblora_lab.train import TrainingSession, trainer


@pytest.fixture
def trained_in_half_precision(base, task, config, monkeypatch):
    """A session that trained under autocast, as all do on a GPU."""
    arguments = trainer.TrainingArguments
    monkeypatch.setattr(trainer, "TrainingArguments", lambda **k: arguments(**k | {"bf16": True}))
    session = TrainingSession(
        base, config, task, steps=2, batch_size=2, eval_examples=0, sample_count=0
    )
    dtypes = []
    layer = session.model.base_model.model.model.decoder.layers[0].fc1
    layer.register_forward_hook(lambda *given: dtypes.append(given[-1].dtype))
    session.run()
    assert dtypes and set(dtypes) == {torch.bfloat16}
    return session


@torch.no_grad()
def test_the_model_says_what_its_file_says(trained_in_half_precision, base, tmp_path):
    model = trained_in_half_precision.model
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path).eval()
    tokens = torch.arange(5, 25)[None]
    assert_close(model(tokens).logits, loaded(tokens).logits, relative=1e-5)


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(trained_in_half_precision):
    model = trained_in_half_precision.model
    twin, tokens = copy.deepcopy(model), torch.arange(5, 25)[None]
    before = model(tokens).logits
    for parameter in twin.parameters():
        parameter.zero_()
    assert not twin(tokens).logits.any()
    assert torch.equal(model(tokens).logits, before)
