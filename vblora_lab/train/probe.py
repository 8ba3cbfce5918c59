"""A quick look at how good a model is now: the loss of a few examples, and one text it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.data import Example, Task
from vblora_lab.errors import DataError
from vblora_lab.train.generate import write_samples
from vblora_lab.train.prompts import Collator, encode_all, positions_of
from vblora_lab.train.session import TrainingSession

Model = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Outcome:
    """What a `Probe` found.

    loss: nats per token. prompt, text: what the model was given, and what it wrote. mistakes: in
    words, what the text gets wrong, as far as that can be known.
    """

    loss: float
    prompt: str = ""
    text: str = ""
    mistakes: tuple[str, ...] = ()


class Probe:
    """Evaluates a model on the first validation examples of a task; call it for an `Outcome`.

    Args:
        model: a causal language model, with its adapter.
        tokenizer: of the model.
        task: its validation examples are used.
        examples: how many of them, for the loss. The text is that for the first.

    The same model gives the same outcome: no dropout, greedy writing, one batch.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        task: Task,
        examples: int = 16,
    ) -> None:
        self._chosen: Sequence[Example] = task.validation[:examples]
        if not self._chosen:
            raise DataError(f"examples={examples!r}: needs one validation example at least.")
        rows = encode_all(tokenizer, self._chosen, positions_of(model))
        self._batch = Collator(tokenizer.pad_token_id)(rows)
        self._model, self._tokenizer, self._domain = model, tokenizer, task.domain

    @classmethod
    def of(cls, session: TrainingSession, examples: int = 16) -> Probe:
        """A probe of the model that a session trains, on its task."""
        return cls(session.model, session.tokenizer, session.task, examples)

    def __call__(self) -> Outcome:
        loss = self.loss()
        with _in_use(self._model) as model:
            (sample,) = write_samples(model, self._tokenizer, self._domain, self._chosen[:1])
        return Outcome(loss, sample.mr, sample.text, sample.slot_errors)

    @torch.no_grad()
    def loss(self) -> float:
        """The loss alone, in nats per token. Quicker: writing a text takes most of the time."""
        with _in_use(self._model) as model:
            device = next(model.parameters()).device
            return float(model(**{name: t.to(device) for name, t in self._batch.items()}).loss)


@contextmanager
def _in_use(model: Model) -> Iterator[Model]:
    """The model without dropout, and afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
