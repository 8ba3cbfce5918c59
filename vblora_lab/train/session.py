"""A training session: one adapter, one task, one run, and everybody may listen."""

from __future__ import annotations

import contextvars
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import Trainer

from vblora_lab.bases import Base, load_base, share_weights
from vblora_lab.config import VBLoRAConfig
from vblora_lab.data import Example, Task, load_task
from vblora_lab.errors import ConfigError, SessionError
from vblora_lab.peft import get_peft_model
from vblora_lab.selection import read_selection
from vblora_lab.train.callback import EventCallback
from vblora_lab.train.events import Event, Finished, Listener, Reason, Sampled, Selected, Started
from vblora_lab.train.generate import write_samples
from vblora_lab.train.optimizer import LearningRates
from vblora_lab.train.prompts import encode_all
from vblora_lab.train.trace import Trace, TraceRecorder
from vblora_lab.train.trainer import make_trainer


class TrainingSession:
    """Fine-tune a base model on a task with VB-LoRA, once.

    Args:
        base: a `Base`, or a name or path for `load_base`. Its model is not changed: the session
            adapts a second model over the same weights.
        config: what to inject; checked before anything else happens.
        task: a `Task`, or a name or CSV path for `load_task`.
        steps, batch_size: optimizer steps, and pairs of MR and text per step.
        learning_rates: peak rates; linear schedule with a warm-up of 6% of the steps.
        seed: draws the adapter and the order of the examples. Two sessions with the same
            arguments train the same adapter.
        eval_examples: validation MRs for the loss before and after; 0 for no evaluation.
        sample_count: validation MRs for which texts are written before and after.
        select_every: steps between two `Selected` events, 0 for none.
        listeners: functions of one `Event`, called in the training thread.

    Raises ConfigError, TargetError, BaseModelError or DataError for what can't be trained.

    `run` trains in the caller's thread; `start`, `stop` and `wait` do the same in the background.
    """

    def __init__(
        self,
        base: Base | str | Path,
        config: VBLoRAConfig,
        task: Task | str | Path = "restaurants",
        *,
        steps: int = 200,
        batch_size: int = 8,
        learning_rates: LearningRates | None = None,
        seed: int = 0,
        eval_examples: int = 64,
        sample_count: int = 3,
        select_every: int = 1,
        listeners: Iterable[Listener] = (),
    ) -> None:
        counts = {"steps": (steps, 1), "batch_size": (batch_size, 1), "seed": (seed, 0)}
        counts |= {"eval_examples": (eval_examples, 0), "sample_count": (sample_count, 0)}
        counts |= {"select_every": (select_every, 0)}
        for name, (value, least) in counts.items():
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        self._base = base if isinstance(base, Base) else load_base(base)
        self.task = task if isinstance(task, Task) else load_task(task)
        self.config = config
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rates = learning_rates or LearningRates()
        self.seed = seed
        self._select_every = select_every
        self._eval_examples = self.task.validation[:eval_examples]
        self._sampled_examples = self.task.validation[:sample_count]

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: PeftModel = get_peft_model(share_weights(self._base.model), config)
        self._encoded = self._encode(self.task.train)
        self._recorder = TraceRecorder()
        self._listeners: list[Listener] = [self._recorder, *listeners]
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._step = 0
        self._started_at = 0.0
        self.status: Reason | str = "ready"

    @property
    def tokenizer(self) -> Tokenizer:
        return self._base.tokenizer

    @property
    def trace(self) -> Trace:
        """The run so far."""
        return self._recorder.trace

    def add_listener(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def run(self) -> Trace:
        """Train in this thread. An interrupt (Ctrl-C, the kernel's stop button) is a clean stop.

        A failure is told to the listeners and then raised.
        """
        self._claim()
        self._train()
        if self._error is not None:
            raise self._error
        return self.trace

    def start(self) -> None:
        """Train in a background thread, in a copy of this context (ipykernel keeps its own)."""
        self._claim()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._train,), name="vblora-training", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ask for an end after the step in progress; returns at once."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> Trace:
        """Wait for the background run and return its trace; raises what made it fail.

        timeout: seconds; a run that still goes on then raises `TimeoutError`.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"still training after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self.trace

    # --- the run

    def _claim(self) -> None:
        if self.status != "ready":
            raise SessionError(
                f"this session is {self.status}; a session trains once. Make a new TrainingSession."
            )
        self.status = "running"

    def _train(self) -> None:
        reason: Reason = "failed"
        self._started_at = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="vblora-lab-") as folder:
                self._train_in(folder)
            reason = "stopped" if self._step < self.steps else "completed"
        except KeyboardInterrupt:
            reason = "stopped"
        except BaseException as error:  # kept for wait(), and told to every listener
            self._error = error
        finally:
            self.model.eval()
            self.status = reason
            seconds = time.monotonic() - self._started_at
            self._emit(Finished(reason, self._step, seconds, self._error))

    def _train_in(self, folder: str) -> None:
        trainer = self._make_trainer(folder)
        self._emit(self._describe())
        self._look(trainer)
        trainer.train()
        self._step = trainer.state.global_step
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Evaluate, sample and read the selection: once before training and once after."""
        if self._eval_examples:
            trainer.evaluate()
        if self._sampled_examples:
            samples = write_samples(
                self.model, self.tokenizer, self.task.domain, self._sampled_examples
            )
            self._emit(Sampled(trainer.state.global_step, samples))
        if trainer.state.global_step == 0 and self._select_every:
            self._emit(Selected(0, read_selection(self.model)))

    def _describe(self) -> Started:
        selection = read_selection(self.model)
        tuner: Any = self.model.base_model
        return Started(
            total_steps=self.steps,
            sub_vectors=selection.sub_vectors,
            num_vectors=selection.num_vectors,
            topk=selection.indices.shape[1],
            trained_parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            stored_bytes=tuner.stored_bytes(only_topk=True),
            lora_stored_bytes=tuner.lora_stored_bytes(),
        )

    def _make_trainer(self, folder: str) -> Trainer:
        callback = EventCallback(
            self._emit, select_every=self._select_every, should_stop=self._stop.is_set
        )
        return make_trainer(
            self.model,
            self.tokenizer,
            self._encoded,
            self._encode(self._eval_examples),
            folder=folder,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rates=self.learning_rates,
            seed=self.seed,
            callbacks=[callback],
        )

    def _encode(self, examples: Sequence[Example]) -> list[dict[str, list[int]]]:
        positions = getattr(self._base.model.config, "max_position_embeddings", 512)
        return encode_all(self.tokenizer, examples, positions)

    def _emit(self, event: Event) -> None:
        self._step = getattr(event, "step", self._step)
        for listener in self._listeners:
            listener(event)
