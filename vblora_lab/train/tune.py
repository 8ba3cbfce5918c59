"""tune(): the config and the learning rates that do best in an adapter of so many bytes.

`tune_space` is what there is to choose from, `tune_study` the book of what was tried, `tune_trial`
trains one candidate, and `tune_result` is what all of it came to.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vblora_lab.bases import MINI_OPT, Base, load_base
from vblora_lab.data import Task, load_task
from vblora_lab.errors import DataError, SessionError
from vblora_lab.runs.events import Listener
from vblora_lab.tables import about, count, readable
from vblora_lab.train.arguments import check_counts, check_seed, with_examples
from vblora_lab.train.tune_result import Tried, Tuned, progress
from vblora_lab.train.tune_space import METHODS, Method, Space, check_methods
from vblora_lab.train.tune_study import FAILURE, Study, optuna, trial_name
from vblora_lab.train.tune_trial import Conditions, measure_cost, run_trial

EVALUATIONS = 4
"""In a trial that runs to its end, unless asked for otherwise; before each but the last it may be
cut short."""
LOOK_AGAIN = 1.0  # seconds, while others train the last trials


def tune(
    base: Base | str | Path = MINI_OPT,
    task: Task | str | Path = "restaurants",
    bytes: int = 250_000,
    trials: int = 40,
    *,
    methods: Sequence[Method] = METHODS[:1],
    memory: int | None = None,
    steps: int = 200,
    batch_size: int = 8,
    seed: int = 0,
    eval_examples: int = 64,
    eval_every: int | None = None,
    prune_after: int = 5,
    out: str | Path | None = None,
    tell: Callable[[str], None] = print,
    listeners: Iterable[Listener] = (),
) -> Tuned:
    """Search for the lowest validation loss among adapters whose file fits into so many bytes.

    Each trial trains a candidate: VB-LoRA in the top-k format, with its rank, bank, topk, target
    modules and learning rates chosen by Optuna (a tree-structured Parzen estimator). One whose
    validation losses on the way are worse than the median of the others' is cut short.

    Args:
        base, task: as for `TrainingSession`; the base's model is not changed.
        bytes: that ``adapter_model.safetensors`` may have, its header included.
        trials: how many candidates to train. None is trained that would not fit.
        methods: "vblora", "lora" or both, in one race. LoRA has ranks 1 to 16, and float32 numbers.
        memory: bytes that weights, adapter, gradients and optimizer may take while training;
            activations aren't counted. None for any.
        steps, batch_size, seed, eval_examples: as for `TrainingSession`, the same for all trials.
            The seed draws the candidates too.
        eval_every: steps between evaluations, after which a trial may be cut short; a quarter of
            the steps by default, 0 to let all trials run to their end.
        prune_after: trials that run to their end before any is cut short.
        out: folder to keep the search in: each trial's run by its name ("trial-007", see `Runs`),
            and the book of trials. The same call goes on with an interrupted search, and ``trials``
            may then be more. Several processes may work on one search. None to keep nothing.
        tell: gets sentences: what it will cost, how each trial ended, how to go on.
        listeners: hear the events of all trials, one trial after another.

    Raises:
        ConfigError: an argument that can't be meant; no adapter is so small, and then the message
            names the smallest; or other arguments than those that the search in ``out`` began with.
        MissingExtraError: Optuna is not installed.
        SessionError: no trial ran to its end without failing. Also, before anything is trained,
            where ``out`` holds runs of another search's names.
        KeyboardInterrupt: on Ctrl-C, after the step in progress. `tell` says how to go on.

    And what `TrainingSession` raises. All but the last two before anything is trained.
    """
    check_counts(1, trials=trials)
    search = Search(
        base, task, bytes, methods=methods, memory=memory, steps=steps, batch_size=batch_size,
        seed=seed, eval_examples=eval_examples, eval_every=eval_every, prune_after=prune_after,
        out=out, tell=tell, listeners=listeners,
    )  # fmt: skip
    return search.run(trials)


class Search:
    """A search that can be watched and stopped from another thread; `tune` is one that isn't.

    Args: those of `tune`, but for the number of trials. Raises as it does.
    """

    def __init__(
        self,
        base: Base | str | Path,
        task: Task | str | Path,
        bytes: int,
        *,
        methods: Sequence[Method] = METHODS[:1],
        memory: int | None = None,
        steps: int = 200,
        batch_size: int = 8,
        seed: int = 0,
        eval_examples: int = 64,
        eval_every: int | None = None,
        prune_after: int = 5,
        out: str | Path | None = None,
        tell: Callable[[str], None] = print,
        listeners: Iterable[Listener] = (),
    ) -> None:
        optuna()
        check_counts(1, bytes=bytes, steps=steps, batch_size=batch_size)
        check_counts(1, eval_examples=eval_examples, prune_after=prune_after)
        check_counts(0, eval_every=eval_every or 0)
        check_counts(1, memory=1 if memory is None else memory)
        check_seed(seed)
        check_methods(methods)
        names = {"base": _name(base), "task": str(task.name if isinstance(task, Task) else task)}
        base = base if isinstance(base, Base) else load_base(base)
        task = _with_validation(task if isinstance(task, Task) else load_task(task))
        every = max(1, steps // EVALUATIONS) if eval_every is None else eval_every
        self.conditions = Conditions(base, task, steps, batch_size, seed, eval_examples, every)
        self.space = Space(base.model, bytes, memory, methods)
        settings = self.conditions.settings()
        asked = {
            "bytes": bytes, "memory": memory, "methods": list(methods), "prune_after": prune_after
        }  # fmt: skip
        self.out = None if out is None else Path(out)
        self.study = Study(self.out, settings | asked, seed=seed, prune_after=prune_after)
        self.bytes, self.settings = bytes, settings | names
        self._tell, self._listeners = tell, tuple(listeners)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End `run` after the step in progress, or before the first. Returns at once."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping.is_set()

    def result(self) -> Tuned:
        """What the trials that have ended come to."""
        return Tuned(self.tried(), self.bytes, self.settings)

    def run(self, trials: int) -> Tuned:
        """Work on trials until so many have ended, here or elsewhere, or `stop` is called."""
        measured = False
        try:
            while not self.stopped:
                trial = self.study.take(trials, self.space.draw)
                if trial is None:
                    if not self.study.is_open():
                        break
                    self._stopping.wait(LOOK_AGAIN)
                    continue
                try:
                    measured = measured or self._tell_cost(trial, trials)
                    self._work_on(trial)
                finally:
                    self.study.give_back(trial)
        except KeyboardInterrupt:
            self._tell(self._how_to_go_on())
            raise
        if self.stopped:
            self._tell(self._how_to_go_on())
        elif not any(trial.state == "completed" for trial in self.tried()):
            last = self.tried()[-1]
            raise SessionError(f"no trial ran to its end; the last, {last.name}, {last.state}")
        return self.result()

    def tried(self) -> tuple[Tried, ...]:
        """The trials that have ended, by number."""
        return tuple(self._tried(trial) for trial in self.study.ended())

    def _work_on(self, trial: Any) -> None:
        candidate = self.space.draw(trial)  # again, from what was chosen when it was taken
        folder = self._folder(trial)
        ending = run_trial(
            self.conditions, candidate, trial, folder, self._listeners, self._stopping.is_set
        )
        if ending.interrupted and math.isnan(ending.loss) and not ending.failure:
            return self._end()
        loss = None if math.isnan(ending.loss) else ending.loss
        self.study.tell(trial, loss, ending.failure)
        self._tell(progress(self.tried(), trial_name(trial.number)))
        if ending.interrupted:
            self._end()

    def _end(self) -> None:
        """After a trial that was interrupted: by `stop`, or by a person who pressed Ctrl-C."""
        if not self.stopped:
            raise KeyboardInterrupt

    def _tell_cost(self, trial: Any, trials: int) -> bool:
        candidate = self.space.draw(trial)
        cost = measure_cost(self.conditions, candidate)
        if cost is None:
            return False
        left = trials - len(self.study.ended())
        seconds = cost.of_trial(self.conditions)
        self._tell(
            f"{count(left, 'trial')} of {count(self.conditions.steps, 'step')}: a step takes "
            f"{cost.step:.2g} s here, so a trial like the first {about(seconds)}, and all of "
            f"them at most about {about(left * seconds)}, less for those that are cut short. "
            f"Memory: {readable(cost.memory)} at its peak; by plan, {readable(candidate.memory)} "
            f"without activations."
        )
        return True

    def _how_to_go_on(self) -> str:
        done = count(len(self.study.ended()), "trial")
        if self.out is None:
            return f"Interrupted after {done}; nothing was kept. Give out= to be able to go on."
        return f"Interrupted after {done}; the same call with out={str(self.out)!r} goes on."

    def _folder(self, trial: Any) -> Path | None:
        return None if self.out is None else self.out / trial_name(trial.number)

    def _tried(self, trial: Any) -> Tried:
        candidate = self.space.draw(trial)
        failure = trial.user_attrs.get(FAILURE, "")
        last = math.nan if trial.value is None else float(trial.value)
        completed = trial.state.name == "COMPLETE"
        state = "completed" if completed else "cut short"
        return Tried(
            name=trial_name(trial.number),
            method=candidate.method,
            targets=candidate.targets,
            config=candidate.config,
            learning_rates=candidate.learning_rates,
            bytes=candidate.bytes,
            loss=last if completed else math.nan,
            last_loss=last,
            state=f"failed: {failure}" if failure else state,
            folder=self._folder(trial),
        )


def _with_validation(task: Task) -> Task:
    """The task; raises `DataError` without examples to train on, or to compare trials by."""
    if not task.validation:
        raise DataError(
            f"task {task.name!r} has no validation examples to compare trials by; it needs at "
            "least 1"
        )
    return with_examples(task)


def _name(base: Base | str | Path) -> str:
    """What to load the base by."""
    if not isinstance(base, Base):
        return str(base)
    return MINI_OPT if base.label == MINI_OPT else str(base.model.name_or_path)
