"""A training session: one adapter, one task, one run, and anyone may listen.

Read it from the top: what is given (`__init__`), what is trained, and the run (`_work`, `_train_in`
and what happens around each step). Its helpers do one thing each: `trainer` sets up the HF Trainer,
`callback` reports what that does, `sampling` writes texts, `peak_rates` keeps rates that change,
`run_files` and `checkpoints` write the run's folder, and `processes` is about several that train
together.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import Trainer

from vblora_lab.bases import Base, load_base, share_weights
from vblora_lab.data import Example, Task, load_task
from vblora_lab.errors import ConfigError, DivergedError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.runs.control import Interrupted
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
from vblora_lab.runs.layout import step_of
from vblora_lab.runs.steerable import SteerableRun
from vblora_lab.train import one_at_a_time
from vblora_lab.train.arguments import check_counts, check_seed, with_examples
from vblora_lab.train.batches import Row
from vblora_lab.train.callback import EventCallback, Steering, describe
from vblora_lab.train.checkpoints import Checkpoints
from vblora_lab.train.devices import random_state_kept
from vblora_lab.train.lent import lent_to_trainer
from vblora_lab.train.memory import forget_peak
from vblora_lab.train.optimizer import LearningRates, change_peak_rates, suited_rates
from vblora_lab.train.peak_rates import PeakRates
from vblora_lab.train.processes import in_any_process, is_first_process, of_first_process
from vblora_lab.train.prompts import encode_all, positions_of
from vblora_lab.train.run_files import RunFiles
from vblora_lab.train.sampling import SampleWriter
from vblora_lab.train.trainer import LabTrainer, make_trainer
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model
from vblora_lab.tuner.sharded import is_cut_over_processes, whole

STEPS, SAVE_EVERY = 200, 50


class TrainingSession(SteerableRun):
    """Fine-tune a base model on a task with VB-LoRA, once.

    Args:
        base: a `Base`, or a name or path for `load_base`. Its model is not changed: the session
            adapts a second model over the same weights.
        config: what to inject; checked before anything else happens.
        task: a `Task`, or a name or path for `load_task`.
        steps, batch_size: optimizer steps, and pairs of MR and text per step (of all processes).
        learning_rates: peaks of a linear schedule with 6% warm-up; by default `suited_rates`.
        seed: draws the adapter and the order of the examples. Two sessions with the same
            arguments train the same adapter.
        eval_examples: validation MRs for the loss before and after; 0 for no evaluation.
        eval_every: steps between further evaluations, 0 for none.
        sample_count: validation MRs for which texts are written before and after.
        sample_every: steps between further texts, 0 for none.
        select_every: steps between two `Selected` events, 0 for none.
        out: folder for checkpoints, the final adapter and the trace; see `runs.layout`. What can't
            be written is reported as `SaveFailed`, and training goes on.
        save_every, keep: steps between checkpoints, 0 for none, and how many of them stay.
        resume: go on from the newest checkpoint in ``out``, or begin if there is none. The end is
            the same as without the interruption, bit for bit on a CPU.
        listeners: functions of one `Event`, called in the training thread (`Working`: here too).

    Raises ConfigError, TargetError, BaseModelError or DataError for what can't be trained, and
    SessionError for an ``out`` that holds another run, or something that no run wrote, or into
    which another session trains; that is looked for again when training begins.

    `start` trains in a background thread, `run` in the caller's, `train` where the front end needs
    it. `pause`, `step`, `resume`, `stop` and `set_learning_rates` steer it from any thread, after
    the step in progress. A run that is stopped skips evaluation and texts, those in progress too.

    Processes of torchrun or ``accelerate launch`` share each batch; the first writes and emits.
    """

    def __init__(
        self,
        base: Base | str | Path,
        config: VBLoRAConfig,
        task: Task | str | Path = "restaurants",
        *,
        steps: int = STEPS,
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
        check_counts(1, steps=steps, batch_size=batch_size, keep=keep)
        check_counts(
            0, eval_examples=eval_examples, eval_every=eval_every, sample_count=sample_count,
            sample_every=sample_every, select_every=select_every, save_every=save_every,
        )  # fmt: skip
        check_seed(seed)
        if resume and out is None:
            raise ConfigError("resume=True needs out, the folder of the run to go on with")
        self._base = base if isinstance(base, Base) else load_base(base)
        self.task = with_examples(task if isinstance(task, Task) else load_task(task))
        self.config = config
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self._rates = PeakRates(learning_rates or suited_rates(steps))
        self._select_every, self._save_every = select_every, save_every
        self._resume = resume
        self._eval_every = eval_every if eval_examples else 0
        self._sample_every = sample_every if sample_count else 0
        self._eval_examples = self.task.validation[:eval_examples]
        self._settings = self._read_settings()
        self.is_first = is_first_process()  # of those that train together; it writes and emits
        folder = None if out is None else RunFolder(out)
        if folder and self.is_first:
            folder.check(self._settings, resume)

        with random_state_kept(self._base.model):
            torch.manual_seed(seed)
            self.model: PeftModel = self._make_model()
        self._samples = SampleWriter(self.model, self._base, self.task, sample_count, self._emit)
        self._checkpoints = Checkpoints(folder, keep) if folder else None
        self._checkpoint = self._checkpoints.latest() if self._checkpoints and resume else None
        self._first_step = step_of(self._checkpoint) if self._checkpoint else 0
        if folder and resume:
            self._rates.recall(folder.rates(), self._first_step)
        self._files = RunFiles(folder if self.is_first else None, self._tell_problem)
        super().__init__(
            [*self._files.listeners(self._first_step), *listeners],
            self._files.events_until(self._first_step),
        )
        self._encoded = self._encode(self.task.train)

    @property
    def base(self) -> Base:
        """What is fine-tuned, without the adapter."""
        return self._base

    @property
    def tokenizer(self) -> Tokenizer:
        return self._base.tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was made with, as plain data."""
        return self._settings

    @property
    def learning_rates(self) -> LearningRates:
        """The peak rates now."""
        return self._rates.now

    def set_learning_rates(self, rates: LearningRates) -> None:
        """Follow the rest of the schedule from other peak rates, from the next step on.

        A run that is resumed, even after it was killed, changes them at the same step again. Where
        several processes train, those of the first one count.
        """
        self._check_under_way("set_learning_rates")
        if not isinstance(rates, LearningRates):
            raise ConfigError(f"rates={rates!r} must be LearningRates(bank=, logits=, other=)")
        self._rates.ask_for(rates)

    # --- what is trained; another method than VB-LoRA has its own

    def _make_model(self) -> PeftModel:
        return get_peft_model(share_weights(self._base.model), self.config)

    def _describe(self) -> Started:
        return describe(self.model, self.steps, self._first_step)

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

    # --- the run

    def _claim(self) -> None:
        super()._claim()
        try:
            one_at_a_time.begin()
            try:
                self._files.claim(self._settings, self._resume)
            except BaseException:
                one_at_a_time.end()
                raise
        except BaseException:
            self.status = "ready"
            raise

    def _release(self) -> None:
        self.model.eval()
        one_at_a_time.end()

    def _work(self) -> Finished:
        start = self._control.clock()
        with (
            lent_to_trainer(self.model),
            tempfile.TemporaryDirectory(prefix="vblora-lab-") as folder,
        ):
            self._train_in(folder)
        reason: Reason = "stopped" if self._step < self.steps else "completed"
        return Finished(reason, self._step, self._control.clock() - start)

    def _train_in(self, folder: str) -> None:
        trainer = self._make_trainer(folder)
        forget_peak(trainer.args.device)  # of runs before this one
        problems = self._files.open(self._settings)
        self._emit(self._describe())
        for problem in problems:
            self._tell_problem(problem)
        if self._checkpoint is None:
            self._sample()
            if self._select_every:
                self._emit(Selected(0, read_selection(self.model)))
        try:
            trainer.train(resume_from_checkpoint=self._checkpoint and str(self._checkpoint))
        except DivergedError:
            self._save_adapter()  # the last good state, which is in the model
            raise
        self._step = trainer.state.global_step
        self._new_rates()  # they may have been set in a pause that a stop ended
        self._save_adapter()
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Evaluate and sample after training, unless that was just done or the run was stopped."""
        if in_any_process(self._control.stopping):
            return  # nobody wants to wait for more
        evaluated = {row["step"] for row in trainer.state.log_history if "eval_loss" in row}
        if self._eval_examples and trainer.state.global_step not in evaluated:
            trainer.evaluate()
        self._sample()

    def _sample(self) -> None:
        if (self.is_first or is_cut_over_processes(self.model)) and (
            samples := self._write_samples()
        ):
            self._emit(Sampled(self._step, samples))

    def _write_samples(self) -> tuple[Sample, ...]:
        together = is_cut_over_processes(self.model)  # all processes must write
        check = self._while_evaluating if together else self._control.check
        return self._samples.write(self._step, on_token=check)

    def _while_evaluating(self) -> None:
        if in_any_process(self._control.stopping):
            raise Interrupted

    def _make_trainer(self, folder: str) -> LabTrainer:
        events = EventCallback(
            self._emit,
            select_every=self._select_every,
            sample_every=self._sample_every,
            write_samples=self._write_samples,
            tell_ends=False,  # the session tells them, outside its evaluations and samples
            clock=self._control.clock,
        )
        steering = Steering(self._before_step, self._after_step, self._while_evaluating)
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
            checkpoints=self._checkpoints,
            save_every=self._save_every,
            emit=self._emit,
            callbacks=[events, steering],
        )

    def _encode(self, examples: Sequence[Example]) -> list[Row]:
        return encode_all(self.tokenizer, examples, positions_of(self._base.model), self._emit)

    def _before_step(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Change the rates if that was asked for, now or before this run was resumed."""
        if rates := of_first_process(self._new_rates() or self._rates.recalled(self._step)):
            change_peak_rates(optimizer, schedule, rates)

    def _new_rates(self) -> LearningRates | None:
        """The rates that were set since the last step; they are noted for a resumed run."""
        if rates := self._rates.asked_for():
            self._files.note_rates(self._step, rates)
        return rates

    def _after_step(self, step: int) -> bool:
        return in_any_process(super()._after_step(step))

    def _emit(self, event: Event) -> None:
        if self.is_first:
            super()._emit(event)
        else:
            self._step = event.step

    # --- what is left behind

    def _save_adapter(self) -> None:
        with whole(self.model):
            if place := self._files.save_adapter(self.model):
                self._emit(Saved(self._step, str(place)))

    def _tell_problem(self, problem: str) -> None:
        self._emit(SaveFailed(self._step, problem))
