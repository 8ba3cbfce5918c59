"""Rows for training: the loss falls on the text alone."""

import copy

import pytest
import torch

from vblora_lab.data import Example, Instruction
from vblora_lab.errors import DataError
from vblora_lab.train.prompts import IGNORED, Collator, encode, encode_all, prompt_ids

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


CHAT = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = Instruction("Note: the Otto is Thai.", ("- Otto (Thai)",))


@pytest.fixture
def chatty(base):
    """The tokenizer with a template that itself marks what an assistant says."""
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


def test_an_instruction_is_a_turn_of_a_chat_and_its_answer_alone_is_learned(chatty):
    (row,) = encode_all(chatty, [ASKED], 512)
    turns = [
        {"role": "user", "content": ASKED.mr},
        {"role": "assistant", "content": ASKED.references[0]},
    ]
    theirs = chatty.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    # The template goes on with a line break after the end token: nothing is to be learned there.
    assert row["input_ids"] == theirs["input_ids"][: len(row["input_ids"])]
    assert [label != IGNORED for label in row["labels"]] == [
        bool(mask) for mask in theirs["assistant_masks"][: len(row["labels"])]
    ]
    assert not any(theirs["assistant_masks"][len(row["labels"]) :])
    assert row["labels"][-1] == chatty.eos_token_id
    assert prompt_ids(chatty, ASKED) == row["input_ids"][: row["labels"].count(IGNORED)]


def test_a_turn_that_ends_otherwise_gets_an_end_token_too(chatty):
    chatty.chat_template = CHAT.replace("{{ m.content }}</s>{% endgen", "{{ m.content }}.{% endgen")
    (row,) = encode_all(chatty, [ASKED], 512)
    assert chatty.decode(row["labels"][-2:]) == ".</s>"


def test_a_tokenizer_without_a_template_gets_an_arrow(base):
    assert base.tokenizer.chat_template is None
    asked, plain = encode(base.tokenizer, [(ASKED, "x"), (ASKED.mr, "x")], 512)
    assert asked == plain


def test_an_mr_is_no_turn_of_a_chat(chatty, base):
    assert prompt_ids(chatty, MR) == base.tokenizer(f"{MR} ->")["input_ids"]
    assert prompt_ids(chatty, Example(MR, (TEXT,))) == prompt_ids(chatty, MR)


def test_a_template_that_rewrites_the_question_is_refused(chatty):
    chatty.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(DataError, match="writes a question otherwise once it is answered"):
        encode_all(chatty, [ASKED], 512)
