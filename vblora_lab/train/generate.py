"""Greedy generation for what examples ask, and samples with their slot errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.data import Example
from vblora_lab.data.grammar import Domain
from vblora_lab.data.metrics import bleu, slot_error_rate, slot_errors
from vblora_lab.runs.events import Sample
from vblora_lab.train.prompts import prompt_ids
from vblora_lab.tuner.sharded import is_cut_over_processes


@torch.no_grad()
def write_texts(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    mrs: Sequence[str | Example],
    *,
    max_new_tokens: int = 80,
    batch_size: int = 64,
    adapter_names: Sequence[str] | None = None,
    on_token: Callable[[], None] = lambda: None,
) -> list[str]:
    """The model's greedy text for each MR, in order. Leaves the model's train/eval mode as it was.

    An example is asked as `prompt_ids` says, so an instruction in a chat. Those of similar length
    are generated together, so that little is padded. ``adapter_names`` says of each which adapter
    writes its text, or "__base__" for none; else the active one writes all. ``on_token`` is called
    after each token (of all texts of a batch); an exception that it raises ends the writing.
    """

    def never_stop(tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        on_token()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    device = next(model.parameters()).device
    starts = [torch.tensor(prompt_ids(tokenizer, asked)) for asked in mrs]
    order = sorted(range(len(mrs)), key=lambda i: len(starts[i]))
    texts = [""] * len(mrs)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            batch = _on_the_left([starts[i] for i in picked], tokenizer.pad_token_id, device)
            if adapter_names is not None:
                batch["adapter_names"] = [adapter_names[i] for i in picked]
            output = model.generate(  # type: ignore[operator]
                **batch,
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([never_stop]),
                synced_gpus=is_cut_over_processes(model),  # else one process may write alone
            )
            new = output[:, batch["input_ids"].shape[1] :]
            for i, text in zip(picked, tokenizer.batch_decode(new, True), strict=True):
                texts[i] = text.strip()
    finally:
        model.train(was_training)
    return texts


def _on_the_left(
    rows: Sequence[torch.Tensor], pad_token_id: int, device: torch.device
) -> dict[str, Any]:
    """Rows of tokens, padded on the left: two int64 tensors (batch, length)."""

    def padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
        left = pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")
        return left.to(device)

    return {
        "input_ids": padded(rows, pad_token_id),
        "attention_mask": padded([torch.ones_like(row) for row in rows], 0),
    }


def measure(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    domain: Domain,
    examples: Sequence[Example],
) -> dict[str, float]:
    """Write a text for each example; returns ``slot_error_rate`` and ``bleu`` (0 to 100) of all."""
    texts = write_texts(model, tokenizer, examples)
    return {
        "slot_error_rate": slot_error_rate(domain, [example.facts for example in examples], texts),
        "bleu": bleu(texts, [example.references for example in examples]),
    }


def write_samples(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    domain: Domain,
    examples: Sequence[Example],
    on_token: Callable[[], None] = lambda: None,
) -> tuple[Sample, ...]:
    """Write a text for each example, and note what it gets wrong. on_token: as `write_texts`."""
    texts = write_texts(model, tokenizer, examples, on_token=on_token)
    return tuple(
        Sample(e.mr, e.references[0], text, slot_errors(domain, e.facts, text))
        for e, text in zip(examples, texts, strict=True)
    )
