"""Texts that a model writes while it is trained, for the same few examples each time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from peft import PeftModel

from vblora_lab.bases import Base
from vblora_lab.data import Task
from vblora_lab.runs.control import Interrupted
from vblora_lab.runs.events import Listener, Sample, Working
from vblora_lab.train.generate import write_samples


class SampleWriter:
    """Writes texts for the first ``count`` validation examples, at most once after each step.

    emit: gets a `Working` after each token.
    """

    def __init__(
        self, model: PeftModel, base: Base, task: Task, count: int, emit: Listener
    ) -> None:
        self._model, self._tokenizer = model, base.tokenizer
        self._domain, self._examples = task.domain, task.validation[:count]
        self._emit = emit
        self._last = -1

    def write(self, step: int, on_token: Callable[[], None]) -> tuple[Sample, ...]:
        """The texts after a step; none where they were written before, or nothing is to be.

        on_token: called after each token; if it raises `Interrupted`, there are no texts.
        """
        if not self._examples or step == self._last:
            return ()
        tokens = count(1)

        def tell() -> None:
            on_token()
            self._emit(Working(step, "writing texts", next(tokens), unit="tokens of each"))

        try:
            samples = write_samples(
                self._model, self._tokenizer, self._domain, self._examples, tell
            )
        except Interrupted:
            return ()
        self._last = step
        return samples
