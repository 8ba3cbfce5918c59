"""One trial of a search: a session that is cut short where the search has seen enough of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vblora_lab.bases import Base
from vblora_lab.data import Task
from vblora_lab.errors import BatchTooLargeError, DivergedError
from vblora_lab.runs.events import Evaluated, Event, Listener, Started, Stepped
from vblora_lab.train.compare import MethodSession
from vblora_lab.train.session import SAVE_EVERY
from vblora_lab.train.tune_space import LABELS, Candidate


@dataclass(frozen=True)
class Conditions:
    """What all trials of a search have in common; as for `TrainingSession`."""

    base: Base
    task: Task
    steps: int
    batch_size: int
    seed: int
    eval_examples: int
    eval_every: int

    def settings(self) -> dict[str, Any]:
        """As plain data, with the names of base and task."""
        return {
            "base": self.base.label,
            "task": self.task.name,
            "train_examples": len(self.task.train),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "eval_examples": self.eval_examples,
            "eval_every": self.eval_every,
        }

    def session(
        self, candidate: Candidate, listeners: Iterable[Listener] = (), **options: Any
    ) -> TrialSession:
        """A session that trains a candidate."""
        options = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rates": candidate.learning_rates,
            "seed": self.seed,
            "eval_examples": self.eval_examples,
            "eval_every": self.eval_every,
            "sample_count": 0,
            "select_every": self.eval_every,
            "listeners": listeners,
            **options,
        }
        label = LABELS[candidate.method]
        return TrialSession(label, self.base, candidate.config, self.task, **options)


class TrialSession(MethodSession):
    """A session that knows why it was stopped.

    Attributes:
        cut_short: by the search, which has seen enough.
        interrupted: by anyone else, such as a person who pressed Ctrl-C.
    """

    cut_short = False
    interrupted = False

    def cut(self) -> None:
        """Ask for an end after the step in progress, on behalf of the search."""
        self.cut_short = True
        super().stop()

    def stop(self) -> None:
        self.interrupted = True
        super().stop()


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Attributes:
        loss: after the last step; NaN where that wasn't reached.
        failure: why it can't be trained; "" where it can.
        interrupted: whether the search is to end. Without a loss and a failure, the trial is to be
            gone on with.
    """

    loss: float = math.nan
    failure: str = ""
    interrupted: bool = False


class Pruning:
    """A listener that reports validation losses to a trial, and stops a session that is behind.

    Args:
        trial: Optuna's.
        steps: of the whole run.
        stopping: says whether the search is to end; the session is stopped after a step then.
    """

    def __init__(self, trial: Any, steps: int, stopping: Callable[[], bool]) -> None:
        self._trial, self._steps, self._stopping = trial, steps, stopping
        self.session: TrialSession | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Evaluated) and 0 < event.step < self._steps:
            if event.step not in self._reported():
                self._trial.report(event.eval_loss, event.step)
            if self.is_behind() and self.session is not None:
                self.session.cut()
        if isinstance(event, Started | Stepped) and self._stopping() and self.session is not None:
            self.session.stop()

    def is_behind(self) -> bool:
        """Whether the losses reported so far are worse than most trials' at the same step."""
        return bool(self._reported()) and bool(self._trial.should_prune())

    def _reported(self) -> dict[int, float]:
        frozen = self._trial.storage.get_trial(self._trial._trial_id)
        return dict(frozen.intermediate_values)


def run_trial(
    conditions: Conditions,
    candidate: Candidate,
    trial: Any,
    out: Path | None,
    listeners: Iterable[Listener],
    stopping: Callable[[], bool],
) -> Ending:
    """Train a candidate, or go on training it where a process was interrupted.

    Args:
        conditions, candidate: what to train.
        trial: Optuna's, which hears the losses.
        out: folder of the run; None for none.
        listeners: hear the session's events.
        stopping: says, after each step, whether the search is to end.
    """
    pruning = Pruning(trial, conditions.steps, stopping)
    if pruning.is_behind():  # as it was found when its process ended
        return Ending()
    session = conditions.session(
        candidate,
        [pruning, *listeners],
        out=out,
        resume=out is not None,
        save_every=conditions.eval_every or SAVE_EVERY,
        keep=1,
    )
    pruning.session = session
    try:
        trace = session.run()
    except (DivergedError, BatchTooLargeError) as error:
        return Ending(failure=str(error))
    if trace.reason == "completed" and conditions.steps in trace.eval_steps:
        loss = float(trace.eval_losses[-1])
        if math.isfinite(loss):
            return Ending(loss, interrupted=session.interrupted)
        failure = f"the validation loss is {loss}"
        return Ending(failure=failure, interrupted=session.interrupted)
    return Ending(interrupted=session.interrupted or not session.cut_short)


@dataclass(frozen=True)
class Cost:
    """As measured: seconds of a step and of an evaluation, and bytes of memory at most.

    Memory is counted as `Stepped` has it: of tensors on a GPU, or else of the whole process.
    """

    step: float
    evaluation: float
    memory: int

    def of_trial(self, conditions: Conditions) -> float:
        """Seconds that a trial takes which runs to its end."""
        every = conditions.eval_every or conditions.steps
        evaluations = 1 + -(-conditions.steps // every)
        return conditions.steps * self.step + evaluations * self.evaluation


def measure_cost(conditions: Conditions, candidate: Candidate) -> Cost | None:
    """Measure two steps and an evaluation of a candidate; None where its training fails.

    Passes on an interrupt.
    """
    last: dict[type, float] = {}  # when the last event of each kind came
    memory = [0]

    def note(event: Event) -> None:
        last[type(event)] = time.monotonic()
        if isinstance(event, Stepped):
            memory.append(event.peak_memory_bytes)

    session = conditions.session(
        candidate,
        [note],
        steps=2,
        eval_every=0,
        select_every=0,
    )
    try:
        trace = session.run()
    except (DivergedError, BatchTooLargeError):
        return None
    if session.interrupted or trace.reason != "completed":
        raise KeyboardInterrupt
    return Cost(trace.seconds_per_step, last[Evaluated] - last[Stepped], max(memory))
