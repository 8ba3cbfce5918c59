"""Models with a head for labels: what is new in them, batches, and what is refused."""

import pytest
import torch
from huggingface_hub import constants

from vblora_lab.bases import MINI_OPT, OPT_125M_RANDOM, load_base, load_classifier
from vblora_lab.errors import BaseModelError, ConfigError

LABELS = ["bad", "fair", "good"]


@pytest.fixture(scope="module")
def base():
    return load_classifier(MINI_OPT, LABELS, seed=1, device="cpu")


def test_the_body_is_the_shipped_one_and_the_head_is_drawn_from_the_seed(base):
    language = load_base(MINI_OPT, device="cpu").model.model.state_dict()
    for name, tensor in base.model.model.state_dict().items():
        assert torch.equal(tensor, language[name]), name
    assert base.model.config.id2label == dict(enumerate(LABELS))
    assert base.label == MINI_OPT and base.tokenizer.padding_side == "right"
    again, other = (
        load_classifier(MINI_OPT, LABELS, seed=seed, device="cpu").model.score.weight
        for seed in (1, 2)
    )
    assert torch.equal(again, base.model.score.weight) and not torch.equal(other, again)


def test_a_head_for_other_labels_is_not_taken_over(base, tmp_path):
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    same = load_classifier(tmp_path, ["x", "y", "z"], device="cpu").model
    assert torch.equal(same.score.weight, base.model.score.weight)
    other = load_classifier(tmp_path, ["no", "yes"], device="cpu").model
    assert other.score.weight.shape == (2, base.model.config.hidden_size)
    weight = "model.decoder.layers.0.fc1.weight"
    assert torch.equal(other.get_parameter(weight), base.model.get_parameter(weight))


def test_the_callers_random_numbers_go_on(base):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_classifier(MINI_OPT, LABELS, device="cpu")
    assert torch.equal(torch.rand(1), expected)


def test_a_text_gets_the_same_logits_alone_and_in_a_batch(base):
    texts = ["Otto is a cheap pub.", "Aroma serves Thai food at the riverside, and it is dear."]
    batch = base.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        together = base.model(**batch).logits
        for text, logits in zip(texts, together, strict=True):
            alone = base.model(base.tokenizer(text, return_tensors="pt").input_ids).logits[0]
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [[], ["one"], ["a", "b", "a"], [1, "1"]])
def test_labels_that_tell_nothing_apart_are_refused(labels):
    with pytest.raises(ConfigError, match="must be two or more names, each of them once"):
        load_classifier(MINI_OPT, labels)


def test_what_can_t_be_loaded_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseModelError, match=r"'bert-base-uncased' .*load_classifier\('minilm-l6'"):
        load_classifier("bert-base-uncased", LABELS)
    with pytest.raises(BaseModelError, match="does not hold a model for classification"):
        load_classifier(tmp_path, LABELS)
    with pytest.raises(BaseModelError, match=r"random weights.*'minilm-l6'"):
        load_classifier(OPT_125M_RANDOM, LABELS)
