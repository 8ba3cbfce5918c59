"""From examples to tensors: ``MR -> text``, or turns of a chat, with the loss on the text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.data import Example, Instruction
from vblora_lab.errors import DataError
from vblora_lab.runs.events import Listener, Working

SEPARATOR = " ->"
IGNORED = -100  # the label that transformers' loss leaves out
TOGETHER = 512  # pairs that are tokenized in one call: twice as fast as one by one


def prompt(mr: str) -> str:
    """What the model is given: the meaning representation and an arrow."""
    return mr + SEPARATOR


def prompt_ids(tokenizer: Tokenizer, asked: str | Example) -> list[int]:
    """The tokens that a model is given before it writes.

    Args:
        tokenizer: of the model.
        asked: an MR, or an example. An `Instruction` is a turn of a chat, as the tokenizer's chat
            template writes it, up to where the answer begins. A tokenizer without a template is of
            a model that was never taught to chat: it gets the instruction and an arrow.
    """
    text = asked if isinstance(asked, str) else asked.mr
    if not _is_chat(tokenizer, asked):
        return list(tokenizer(prompt(text))["input_ids"])
    return list(tokenizer(_as_turns(tokenizer, text), add_special_tokens=False)["input_ids"])


def encode(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str | Example, str]], max_length: int
) -> list[dict[str, list[int]]]:
    """Training rows: ``input_ids`` and ``labels``, in which the prompt is `IGNORED`.

    Args:
        tokenizer: of the model.
        pairs: what is asked, as for `prompt_ids`, and what is to be written, up to the end token.
        max_length: positions that the model has.

    Raises:
        DataError: a row is longer, or the chat template writes a question otherwise once it is
            answered, so that it can't be said where the answer begins.
    """
    starts = _prompts_ids(tokenizer, [asked for asked, _ in pairs])
    texts = [_said(tokenizer, asked, reference) for asked, reference in pairs]
    rests = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = []
    for (asked, _), start, rest in zip(pairs, starts, rests, strict=True):
        if rest[-1:] != [tokenizer.eos_token_id]:  # the end of a turn is another token with some
            rest = [*rest, tokenizer.eos_token_id]
        if len(start) + len(rest) > max_length:
            text = asked if isinstance(asked, str) else asked.mr
            raise DataError(
                f"an example takes {len(start) + len(rest)} tokens, but the model has {max_length} "
                f"positions; shorten or drop {text!r}"
            )
        rows.append({"input_ids": start + rest, "labels": [IGNORED] * len(start) + rest})
    return rows


def _prompts_ids(tokenizer: Tokenizer, asked: Sequence[str | Example]) -> list[list[int]]:
    """As `prompt_ids`, of many; without chats in one call, which is twice as fast."""
    if any(_is_chat(tokenizer, each) for each in asked):
        return [prompt_ids(tokenizer, each) for each in asked]
    texts = [each if isinstance(each, str) else each.mr for each in asked]
    return list(tokenizer([prompt(text) for text in texts])["input_ids"])


def _said(tokenizer: Tokenizer, asked: str | Example, reference: str) -> str:
    text = asked if isinstance(asked, str) else asked.mr
    return _answer(tokenizer, text, reference) if _is_chat(tokenizer, asked) else f" {reference}"


def _is_chat(tokenizer: Tokenizer, asked: str | Example) -> bool:
    return isinstance(asked, Instruction) and bool(tokenizer.chat_template)


def _as_turns(tokenizer: Tokenizer, question: str, answer: str | None = None) -> str:
    """A question in the chat template, with its answer, or up to where that begins."""
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return str(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    )


def _answer(tokenizer: Tokenizer, question: str, reference: str) -> str:
    """What the template writes of an answer: its text and the end of the turn."""
    start = _as_turns(tokenizer, question)
    whole = _as_turns(tokenizer, question, reference)
    if not whole.startswith(start):
        raise DataError(
            "the tokenizer's chat_template writes a question otherwise once it is answered, so the "
            f"answer can't be told from it: {whole[:400]!r} doesn't begin with {start[:400]!r}; "
            "set tokenizer.chat_template to one that adds the answer at the end"
        )
    return whole[len(start) :].rstrip()


def encode_all(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_length: int,
    emit: Listener = lambda _: None,
) -> list[dict[str, list[int]]]:
    """One row for every pair of an example and a reference of it.

    emit: gets a `Working` now and then.
    """
    pairs = [(example, text) for example in examples for text in example.references]
    rows: list[dict[str, list[int]]] = []
    for start in range(0, len(pairs), TOGETHER):
        emit(Working(0, "reading", start, len(pairs)))
        rows += encode(tokenizer, pairs[start : start + TOGETHER], max_length)
    return rows


def positions_of(model: PreTrainedModel | PeftModel) -> int:
    """How many tokens a row may have; 512 where the model's config doesn't say."""
    return int(getattr(model.config, "max_position_embeddings", 512))


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to the longest of the batch: three int64 tensors (batch, length).

    multiple: what the length is rounded up to a multiple of, so that batches have few shapes.
    """

    pad_token_id: int
    multiple: int = 1

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.multiple) * self.multiple
        batch = {
            "input_ids": torch.full((len(rows), length), self.pad_token_id),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
            "labels": torch.full((len(rows), length), IGNORED),
        }
        for i, row in enumerate(rows):
            count = len(row["input_ids"])
            batch["input_ids"][i, :count] = torch.tensor(row["input_ids"])
            batch["attention_mask"][i, :count] = 1
            batch["labels"][i, :count] = torch.tensor(row["labels"])
        return batch
