"""Rows for training: the loss falls on the text alone."""

import pytest
import torch

from vblora_lab.errors import DataError
from vblora_lab.train.prompts import IGNORED, Collator, encode, encode_all

MR, TEXT = "name[Otto], food[Thai]", "Otto is a Thai place."


def test_a_row_is_mr_arrow_text_and_end(base):
    row = encode(base.tokenizer, [(MR, TEXT)], 512)[0]
    assert base.tokenizer.decode(row["input_ids"]) == f"</s>{MR} -> {TEXT}</s>"
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    assert base.tokenizer.decode(learned) == f" {TEXT}</s>"


def test_every_reference_becomes_a_row(base, task):
    rows = encode_all(base.tokenizer, task.validation, 512)
    assert len(rows) == sum(len(example.references) for example in task.validation) == 24


def test_the_loss_of_a_batch_is_the_mean_over_text_tokens(base):
    rows = encode(base.tokenizer, [(MR, TEXT), (MR, "Otto.")], 512)
    batch = Collator(base.tokenizer.pad_token_id)(rows)
    with torch.no_grad():
        loss = base.model(**batch).loss
        by_hand = []
        for row in rows:  # each alone, so that no padding is near
            ids = torch.tensor(row["input_ids"])
            logits = base.model(ids[None]).logits[0].double().log_softmax(-1)
            by_hand += [
                -logits[i - 1, ids[i]] for i, label in enumerate(row["labels"]) if label != IGNORED
            ]
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


def test_rows_longer_than_the_model_are_refused(base):
    with pytest.raises(DataError, match=r"tokens, but the model has 20 positions"):
        encode(base.tokenizer, [(MR, TEXT)], 20)
