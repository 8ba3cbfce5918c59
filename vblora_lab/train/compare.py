"""VB-LoRA, LoRA, full fine-tuning and any other method of PEFT, trained on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftConfig

from vblora_lab.bases import MINI_OPT, Base, load_base, share_weights
from vblora_lab.data import Task, load_task
from vblora_lab.errors import ConfigError, nearest
from vblora_lab.inspection.selection import SubVectors
from vblora_lab.runs.events import Event, Listener, Started, Stepped
from vblora_lab.runs.results import Comparison, Result
from vblora_lab.runs.runs import Runs
from vblora_lab.tables import about, count, readable
from vblora_lab.train.devices import random_state_kept
from vblora_lab.train.generate import measure
from vblora_lab.train.methods import (
    METHODS,
    default_rates,
    has_bank,
    prepare,
    stored_bytes,
    trained_parameters,
)
from vblora_lab.train.optimizer import LearningRates
from vblora_lab.train.session import STEPS, TrainingSession
from vblora_lab.tuner.config import VBLoRAConfig


class MethodSession(TrainingSession):
    """A session that trains with any method, VB-LoRA among them.

    Args:
        method: one of `METHODS` for a VBLoRAConfig, any name for another config.
        base, task, **options: as for `TrainingSession`.
        config: of VB-LoRA (LoRA gets its rank and targets), or any other of PEFT's.
    """

    def __init__(
        self,
        method: str,
        base: Base | str | Path,
        config: PeftConfig,
        task: Task | str | Path = "restaurants",
        **options: Any,
    ) -> None:
        self.method = method
        self._has_bank = has_bank(method, config)
        if not self._has_bank:
            options["select_every"] = 0
        if options.get("learning_rates") is None:
            options["learning_rates"] = default_rates(method, options.get("steps", STEPS))
        super().__init__(base, config, task, **options)  # type: ignore[arg-type]

    def _make_model(self) -> Any:  # a PeftModel, or the base's own class
        return prepare(share_weights(self.base.model), self.method, self.config)

    def _describe(self) -> Started:
        if self._has_bank:
            return super()._describe()
        nothing = np.zeros(0, np.int32)
        return Started(
            total_steps=self.steps,
            sub_vectors=SubVectors((), nothing, nothing, nothing.astype("<U1"), nothing, nothing),
            num_vectors=0,
            topk=0,
            trained_parameters=trained_parameters(self.model),
            stored_bytes=stored_bytes(self.model),
            lora_stored_bytes=0,
            step=self._first_step,
            base=self.base.label,
        )

    def _read_settings(self) -> dict[str, Any]:
        return {"method": self.method, **super()._read_settings()}


class CostOfAll:
    """A listener that tells, after the first steps of the first method, what all will cost.

    Args:
        tell: gets one sentence, once.
        methods: how many there are.
        texts: that each of them writes in the end.
    """

    AFTER = 3  # steps; the first one is slower

    def __init__(self, tell: Callable[[str], None], methods: int, texts: int) -> None:
        self._tell, self._methods, self._texts = tell, methods, texts
        self._told = False

    def __call__(self, event: Event) -> None:
        if self._told or not isinstance(event, Stepped):
            return
        if event.step < min(self.AFTER, event.total_steps):
            return
        self._told = True
        step = 1 / event.steps_per_second
        texts = f", and {count(self._texts, 'text')} each on top" if self._texts else ""
        self._tell(
            f"{count(self._methods, 'method')} of {count(event.total_steps, 'step')}: a step of "
            f"the first takes {step:.2g} s here, so the steps of all of them about "
            f"{about(self._methods * event.total_steps * step)}{texts}. Memory: "
            f"{readable(event.peak_memory_bytes)} at its peak so far."
        )


def compare(
    base: Base | str | Path = MINI_OPT,
    task: Task | str | Path = "restaurants",
    methods: Sequence[str] | Mapping[str, PeftConfig] = tuple(METHODS),
    *,
    config: VBLoRAConfig | None = None,
    steps: int = 200,
    batch_size: int = 8,
    learning_rates: Mapping[str, LearningRates] | None = None,
    seed: int = 0,
    eval_examples: int = 64,
    test_examples: int = 100,
    runs: Runs | str | Path | None = None,
    tell: Callable[[str], None] = print,
    listeners: Iterable[Listener] = (),
) -> Comparison:
    """Train each method from the same base on the same batches, and measure it on the same texts.

    Args:
        base, task: as for `TrainingSession`; the base's model is not changed.
        methods: names out of `METHODS`; or configs of PEFT by the names that they get here, as
            ``{"LoRA rank 1": LoraConfig(r=1, ...), "VeRA": VeraConfig(...)}``. The table has their
            order. The configs are not changed.
        config: of VB-LoRA; LoRA gets its rank and targets. For methods given by name.
        steps, batch_size, seed, eval_examples: as for `TrainingSession`.
        learning_rates: peak rates by method, by default those of `default_rates`. A fair comparison
            gives each method its best.
        test_examples: held-out MRs to write texts for, for BLEU and slot errors; 0 for neither.
        runs: where to keep each method's run, under the method's name: its trace and settings while
            it trains, so that even a killed process leaves what was on screen; then adapter and
            result.
        tell: gets a sentence, after the first steps: how long all will take, and the memory.
        listeners: hear the events of all runs, one run after another.

    An interrupt ends the comparison after the step in progress, with the runs that were completed.

    Raises ConfigError for an unknown method or a config that PEFT can't use, SessionError for a
    name that is taken in ``runs``, and what `TrainingSession` raises; all before anything is
    trained.
    """
    rates = dict(learning_rates or {})
    config = config or VBLoRAConfig(task_type="CAUSAL_LM")
    configs = dict(methods) if isinstance(methods, Mapping) else dict.fromkeys(methods, config)
    known = list(METHODS | configs if isinstance(methods, Mapping) else METHODS)
    for name in (*configs, *rates):
        _check_method(name, known)
    runs = Runs(runs) if isinstance(runs, str | Path) else runs
    places = {name: None if runs is None else runs.place(name) for name in configs}
    base = base if isinstance(base, Base) else load_base(base)
    task = task if isinstance(task, Task) else load_task(task)
    with random_state_kept(base.model):
        for name, its in configs.items():  # a trial, before the first is trained
            prepare(share_weights(base.model), name, its)
    results, traces, settings = {}, {}, {}
    listeners = (CostOfAll(tell, len(configs), test_examples), *listeners)
    for name, its in configs.items():
        session = MethodSession(
            name,
            base,
            its,
            task,
            steps=steps,
            batch_size=batch_size,
            learning_rates=rates.get(name),
            seed=seed,
            eval_examples=eval_examples,
            sample_count=0,
            out=places[name],
            save_every=0,
            listeners=listeners,
        )
        trace = session.run()
        if trace.reason != "completed":
            break
        results[name], traces[name] = _result(session, test_examples), trace
        settings = session.settings
        if runs is not None:
            runs.note(name, results[name])
    common = {k: settings[k] for k in ("base", "task", "steps", "batch_size", "seed") if settings}
    return Comparison(results, traces, common)


def _check_method(name: str, methods: Sequence[str]) -> None:
    if name not in methods:
        near = nearest(name, methods)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"no method is called {name!r}, only {methods}{hint}")


def _result(session: MethodSession, test_examples: int) -> Result:
    """What a session that has ended came to, measured on held-out examples if any are wanted."""
    task, quality = session.task, {}
    if test_examples:
        examples = task.test[:test_examples]
        quality = measure(session.model, session.tokenizer, task.domain, examples)
    return Result.of(
        session.trace,
        trained_parameters=trained_parameters(session.model),
        stored_bytes=stored_bytes(session.model),
        **quality,
    )
