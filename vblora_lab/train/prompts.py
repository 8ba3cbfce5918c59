"""From examples to tensors: ``MR -> text``, with the loss on the text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.data import Example
from vblora_lab.errors import DataError
from vblora_lab.runs.events import Listener, Working

SEPARATOR = " ->"
IGNORED = -100  # the label that transformers' loss leaves out
TOGETHER = 512  # pairs that are tokenized in one call: twice as fast as one by one


def prompt(mr: str) -> str:
    """What the model is given: the meaning representation and an arrow."""
    return mr + SEPARATOR


def encode(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], max_length: int
) -> list[dict[str, list[int]]]:
    """A training row for each MR and reference: ``input_ids`` and ``labels``, the prompt `IGNORED`.

    Raises `DataError` where a row is longer than the model's ``max_length`` positions.
    """
    mrs, references = ([pair[side] for pair in pairs] for side in (0, 1))
    starts = tokenizer([prompt(mr) for mr in mrs])["input_ids"]
    texts = [" " + reference for reference in references]
    rests = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = []
    for mr, start, rest in zip(mrs, starts, rests, strict=True):
        rest = [*rest, tokenizer.eos_token_id]
        if len(start) + len(rest) > max_length:
            raise DataError(
                f"an example takes {len(start) + len(rest)} tokens, but the model has {max_length} "
                f"positions; shorten or drop {mr!r}"
            )
        rows.append({"input_ids": start + rest, "labels": [IGNORED] * len(start) + rest})
    return rows


def encode_all(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_length: int,
    emit: Listener = lambda _: None,
) -> list[dict[str, list[int]]]:
    """One row for every pair of a meaning representation and a reference.

    emit: gets a `Working` now and then.
    """
    pairs = [(example.mr, text) for example in examples for text in example.references]
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
