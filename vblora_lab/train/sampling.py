"""Texts that a model writes while it is trained, for the same few examples each time."""

from __future__ import annotations

from collections.abc import Callable

from peft import PeftModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.data import Task
from vblora_lab.runs.control import Interrupted
from vblora_lab.runs.events import Sample
from vblora_lab.train.generate import write_samples


class SampleWriter:
    """Writes texts for the first ``count`` validation examples, at most once after each step."""

    def __init__(self, model: PeftModel, tokenizer: Tokenizer, task: Task, count: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._domain, self._examples = task.domain, task.validation[:count]
        self._last = -1

    def write(self, step: int, on_token: Callable[[], None]) -> tuple[Sample, ...]:
        """The texts after a step; none where they were written before, or nothing is to be.

        on_token: called after each token; if it raises `Interrupted`, there are no texts.
        """
        if not self._examples or step == self._last:
            return ()
        try:
            samples = write_samples(
                self._model, self._tokenizer, self._domain, self._examples, on_token
            )
        except Interrupted:
            return ()
        self._last = step
        return samples
