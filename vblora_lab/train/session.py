"""A training session: one adapter, one task, one run, and everybody may listen."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from peft import PeftModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import Trainer

from vblora_lab.bases import Base, load_base, share_weights
from vblora_lab.data import Example, Task, load_task
from vblora_lab.errors import ConfigError, DivergedError, SessionError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.runs.control import Interrupted
from vblora_lab.runs.driving import Driven
from vblora_lab.runs.events import (
    Event,
    Finished,
    Listener,
    Reason,
    Sample,
    Sampled,
    Saved,
    SaveFailed,
    Selected,
    Started,
)
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import ADAPTER, TRACE
from vblora_lab.runs.trace import Trace, TraceRecorder
from vblora_lab.runs.trace_file import TraceWriter
from vblora_lab.train.callback import EventCallback, Steering, describe
from vblora_lab.train.completion import completion_logits
from vblora_lab.train.generate import write_samples
from vblora_lab.train.locked import locked
from vblora_lab.train.memory import forget_peak
from vblora_lab.train.optimizer import LearningRates, change_peak_rates
from vblora_lab.train.prompts import encode_all
from vblora_lab.train.trainer import WRITE_ERRORS, LabTrainer, make_trainer
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model

_ONE_AT_A_TIME = threading.Lock()
"""Held by the session that trains: two would draw from the same random numbers."""

SAVE_EVERY = 50


class TrainingSession(Driven):
    """Fine-tune a base model on a task with VB-LoRA, once.

    Args:
        base: a `Base`, or a name or path for `load_base`. Its model is not changed: the session
            adapts a second model over the same weights.
        config: what to inject; checked before anything else happens.
        task: a `Task`, or a name or CSV path for `load_task`.
        steps, batch_size: optimizer steps, and pairs of MR and text per step (of all processes).
        learning_rates: peak rates; linear schedule with a warm-up of 6% of the steps.
        seed: draws the adapter and the order of the examples. Two sessions with the same
            arguments train the same adapter.
        eval_examples: validation MRs for the loss before and after; 0 for no evaluation.
        eval_every: steps between further evaluations, 0 for none.
        sample_count: validation MRs for which texts are written before and after.
        sample_every: steps between further texts, 0 for none.
        select_every: steps between two `Selected` events, 0 for none.
        out: folder for checkpoints, the final adapter and the trace; see `train.folder`. What can't
            be written is told as `SaveFailed`, and training goes on.
        save_every, keep: steps between checkpoints, 0 for none, and how many of them stay.
        resume: go on from the newest checkpoint in ``out``, or begin if there is none. The end is
            the same as without the interruption, bit for bit on a CPU.
        listeners: functions of one `Event`, called in the training thread.

    Raises ConfigError, TargetError, BaseModelError or DataError for what can't be trained, and
    SessionError for an ``out`` that holds another run.

    `train` drives the run as the front end needs it: `start` trains in a background thread, `run`
    in the caller's. `pause`, `step`, `resume`, `stop` and `set_learning_rates` steer it from any
    thread; what they ask for happens after the step in progress. A run that is stopped skips the
    evaluation and the texts that end a whole one, and cuts short those it is at.

    Started by torchrun or ``accelerate launch``, processes share each batch, and the first one
    writes and emits.
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
        eval_every: int = 0,
        sample_count: int = 3,
        sample_every: int = 0,
        select_every: int = 1,
        out: str | Path | None = None,
        save_every: int = SAVE_EVERY,
        keep: int = 2,
        resume: bool = False,
        listeners: Iterable[Listener] = (),
    ) -> None:
        _check_counts(1, steps=steps, batch_size=batch_size, keep=keep)
        _check_counts(
            0, seed=seed, eval_examples=eval_examples, eval_every=eval_every,
            sample_count=sample_count, sample_every=sample_every, select_every=select_every,
            save_every=save_every,
        )  # fmt: skip
        if seed >= 2**32:  # NumPy takes no larger ones
            raise ConfigError(f"seed={seed!r} must be below 2**32; {seed % 2**32} would do")
        if resume and out is None:
            raise ConfigError("resume=True needs out, the folder of the run to go on with")
        self._base = base if isinstance(base, Base) else load_base(base)
        self.task = task if isinstance(task, Task) else load_task(task)
        self.config = config
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rates = learning_rates or LearningRates()
        self.seed = seed
        self._select_every, self._save_every = select_every, save_every
        self._eval_every = eval_every if eval_examples else 0
        self._sample_every = sample_every if sample_count else 0
        self._eval_examples = self.task.validation[:eval_examples]
        self._sampled_examples = self.task.validation[:sample_count]
        self._settings = self._read_settings()
        self._folder = None if out is None else RunFolder(out, keep)
        # torchrun and accelerate tell each process its rank; the first alone writes and emits.
        self.is_first = os.environ.get("RANK", "0") == "0"
        if self._folder and self.is_first:
            self._folder.check(self._settings, resume)

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: PeftModel = self._make_model()
        self._encoded = self._encode(self.task.train)
        self._new_rates: deque[LearningRates] = deque(maxlen=1)  # from thread to thread
        self._noted_rates: dict[int, LearningRates] = {}
        self._sampled_at = -1
        self._checkpoint = self._folder.latest_checkpoint() if self._folder and resume else None
        self._first_step = int(self._checkpoint.name.split("-")[1]) if self._checkpoint else 0
        super().__init__(listeners)
        if self._folder and self.is_first:
            self._keep_trace(self._folder.path / TRACE)
        if self._folder and resume:
            self._read_rates(self._folder)

    @property
    def base(self) -> Base:
        """What is fine-tuned, without the adapter."""
        return self._base

    @property
    def tokenizer(self) -> Tokenizer:
        return self._base.tokenizer

    def set_learning_rates(self, rates: LearningRates) -> None:
        """Follow the rest of the schedule from other peak rates, from the next step on.

        A run that is resumed, even after it was killed, changes them at the same step again. Where
        several processes train, those of the first one count.
        """
        self._check_under_way("set_learning_rates")
        if not isinstance(rates, LearningRates):
            raise ConfigError(f"rates={rates!r} must be LearningRates(bank=, logits=, other=)")
        self.learning_rates = rates
        self._noted_rates = {}
        self._new_rates.append(rates)

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was made with, as plain data."""
        return self._settings

    # --- the run

    def _make_model(self) -> PeftModel:
        return get_peft_model(share_weights(self._base.model), self.config)

    def _describe(self) -> Started:
        return describe(self.model, self.steps, self._first_step)

    def _claim(self) -> None:
        if self.status == "ready" and not _ONE_AT_A_TIME.acquire(blocking=False):
            raise SessionError(
                "another session is training in this process. Stop it, or wait for its end, before "
                "you start this one."
            )
        super()._claim()

    def _release(self) -> None:
        self.model.eval()
        _ONE_AT_A_TIME.release()

    def _work(self) -> Finished:
        start = self._control.clock()
        with (
            locked(self.model),
            completion_logits(self.model),
            tempfile.TemporaryDirectory(prefix="vblora-lab-") as folder,
        ):
            self._train_in(folder)
        reason: Reason = "stopped" if self._step < self.steps else "completed"
        return Finished(reason, self._step, self._control.clock() - start)

    def _train_in(self, folder: str) -> None:
        trainer = self._make_trainer(folder)
        forget_peak(trainer.args.device)  # of runs before this one
        self._emit(self._describe())
        if self._folder and self.is_first:
            self._write("the folder", partial(self._folder.open, self._settings))
        if self._checkpoint is None:
            self._sample()
            if self._select_every:
                self._emit(Selected(0, read_selection(self.model)))
        try:
            checkpoint = str(self._checkpoint) if self._checkpoint else None
            trainer.train(resume_from_checkpoint=checkpoint)
        except DivergedError:
            self._save_adapter()  # the last good state, which is in the model
            raise
        self._step = trainer.state.global_step
        if self._new_rates:
            self._note_rates(self._new_rates.pop())  # set in a pause that a stop has ended
        self._save_adapter()
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Evaluate and sample after training, unless that was just done, or the run was stopped."""
        if _anywhere(self._control.stopping):
            return  # who stops a run doesn't want to wait
        log = trainer.state.log_history
        evaluated = {row["step"] for row in log if "eval_loss" in row}
        if self._eval_examples and trainer.state.global_step not in evaluated:
            trainer.evaluate()
        self._sample()

    def _sample(self) -> None:
        wanted = self._sampled_examples and self.is_first and self._sampled_at != self._step
        if wanted and (samples := self._write_samples()):
            self._emit(Sampled(self._step, samples))

    def _write_samples(self) -> tuple[Sample, ...]:
        """Texts for the sampled examples; none if a stop came meanwhile."""
        try:
            return write_samples(
                self.model, self.tokenizer, self.task.domain, self._sampled_examples,
                on_token=self._control.check,
            )  # fmt: skip
        except Interrupted:
            return ()

    def _while_evaluating(self) -> None:
        if _anywhere(self._control.stopping):
            raise Interrupted

    def _make_trainer(self, folder: str) -> LabTrainer:
        events = EventCallback(
            self._emit,
            select_every=self._select_every,
            sample_every=self._sample_every,
            write_samples=self._write_samples,
            tell_ends=False,  # they include the looks before and after
            clock=self._control.clock,
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
            eval_first=bool(self._eval_examples) and self._checkpoint is None,
            eval_every=self._eval_every,
            run_folder=self._folder,
            save_every=self._save_every,
            emit=self._emit,
            callbacks=[
                events,
                Steering(self._before_step, self._after_step, self._while_evaluating),
            ],
        )

    def _before_step(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Change the rates, if somebody wants that, or did before this run was resumed."""
        rates = self._new_rates.pop() if self._new_rates else None
        if rates is not None:
            self._note_rates(rates)
        elif rates := self._noted_rates.get(self._step):
            self.learning_rates = rates
        if PartialState().num_processes > 1:
            (rates,) = broadcast_object_list([rates])
        if rates is not None:
            change_peak_rates(optimizer, schedule, rates)

    def _after_step(self, step: int) -> bool:
        return _anywhere(super()._after_step(step))

    def _emit(self, event: Event) -> None:
        if isinstance(event, Sampled):
            self._sampled_at = event.step
        if self.is_first:
            super()._emit(event)
        else:
            self._step = event.step

    # --- what is left behind

    def _save_adapter(self) -> None:
        if self._folder is None or not self.is_first:
            return
        if self._write("the adapter", partial(_save_pretrained, self.model, self._folder)):
            self._emit(Saved(self._step, str(self._folder.path / ADAPTER)))

    def _note_rates(self, rates: LearningRates) -> None:
        if self._folder and self.is_first:
            noted = partial(self._folder.note_rates, self._step, dataclasses.asdict(rates))
            self._write("the new learning rates", noted)

    def _read_rates(self, folder: RunFolder) -> None:
        """The rates that a checkpoint holds, and those that were set after it."""
        for step, rates in folder.rates().items():
            if step >= self._first_step:
                self._noted_rates[step] = LearningRates(**rates)
            else:
                self.learning_rates = LearningRates(**rates)

    def _write(self, what: str, write: Callable[[], None]) -> bool:
        """Whether it could be written; a failure is told."""
        try:
            write()
        except WRITE_ERRORS as error:
            self._emit(SaveFailed(self._step, f"{what} not saved: {error}"))
            return False
        return True

    def _keep_trace(self, path: Path) -> None:
        """Write events to a file; a run that goes on begins with what was told until then."""
        if self._checkpoint and path.exists():
            told = Trace.load(path).events
            until = [e for e in told if e.step <= self._first_step and not isinstance(e, Finished)]
            self._recorder = TraceRecorder(until)
            self._listeners[0] = self._recorder
        self._listeners.insert(
            1,
            TraceWriter(
                path,
                resume_from=self._first_step or None,
                tell=lambda problem: self._emit(SaveFailed(self._step, problem)),
            ),
        )

    def _read_settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on where it ended."""
        return {
            "base": self._base.label,
            "task": self.task.name,
            "train_examples": len(self.task.train),
            "config": self.config.to_dict(),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rates": dataclasses.asdict(self.learning_rates),
            "seed": self.seed,
        }

    def _encode(self, examples: Sequence[Example]) -> list[dict[str, list[int]]]:
        positions = getattr(self._base.model.config, "max_position_embeddings", 512)
        return encode_all(self.tokenizer, examples, positions)


def _check_counts(least: int, **counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")


def _anywhere(flag: bool) -> bool:
    """Whether a flag is set in any of the processes that train together."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=state.device)))


def _save_pretrained(model: PeftModel, folder: RunFolder) -> None:
    with folder.writing(ADAPTER) as place:
        model.save_pretrained(str(place))
