"""VB-LoRA, LoRA, full fine-tuning and any other method of PEFT, on the same batches."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft import PeftConfig, PeftModel
from torch import nn

from vblora_lab.bases import MINI_OPT, Base, load_base, share_weights
from vblora_lab.data import Task, load_task
from vblora_lab.errors import ConfigError
from vblora_lab.inspection.selection import SubVectors
from vblora_lab.planning.plan import plan
from vblora_lab.runs.events import Listener, Started
from vblora_lab.runs.runs import Comparison, Result, Runs
from vblora_lab.train.generate import measure
from vblora_lab.train.optimizer import LearningRates
from vblora_lab.train.session import TrainingSession
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.peft import get_peft_model


def _vblora(model: nn.Module, config: VBLoRAConfig) -> nn.Module:
    return get_peft_model(model, config)


def _lora(model: nn.Module, config: VBLoRAConfig) -> nn.Module:
    """LoRA of the same rank on the modules that the VB-LoRA config adapts."""
    targets = [target.name for target in plan(model, config).targets]
    lora = peft.LoraConfig(
        r=config.r, lora_alpha=config.r, target_modules=targets, task_type=config.task_type
    )
    return peft.get_peft_model(model, lora)


def _full(model: nn.Module, config: VBLoRAConfig) -> nn.Module:
    # The base keeps its weights: this method writes into its own.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.requires_grad_(True)


METHODS: dict[str, Callable[[nn.Module, VBLoRAConfig], nn.Module]] = {
    "VB-LoRA": _vblora,
    "LoRA": _lora,
    "full fine-tuning": _full,
}
RATES = {
    "VB-LoRA": LearningRates(),
    "LoRA": LearningRates(other=5e-4),
    "full fine-tuning": LearningRates(other=5e-5),
}
"""Peak rates for models of the size of OPT-125m and up; smaller ones take larger rates."""


def prepare(model: nn.Module, method: str, config: PeftConfig) -> nn.Module:
    """The model, ready to be trained with a method; it is changed in place.

    Args:
        model: with weights that may be shared; those that the method trains are its own then.
        method: one of `METHODS` if ``config`` is a VBLoRAConfig, else any name.
        config: a VBLoRAConfig, or what PEFT is to inject. Never changed.
    """
    if isinstance(config, VBLoRAConfig):
        return METHODS.get(method, _vblora)(model, config)
    if not isinstance(config, PeftConfig):
        raise ConfigError(f"{method!r}: {config!r} must be a config of PEFT, such as a LoraConfig")
    try:
        return peft.get_peft_model(model, copy.deepcopy(config))
    except (ValueError, TypeError) as error:
        what = type(config).__name__
        raise ConfigError(f"{method!r}: PEFT can't use this {what} here: {error}") from error


class MethodSession(TrainingSession):
    """A session that trains with another method than VB-LoRA, or with it.

    Args:
        method: one of `METHODS`, or any name beside another config than a VBLoRAConfig.
        base, task, **options: as for `TrainingSession`.
        config: of VB-LoRA, and LoRA gets its rank and targets; or any other of PEFT's.
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
        prepares = METHODS.get(method, _vblora)
        self._has_bank = isinstance(config, VBLoRAConfig) and prepares is _vblora
        if not self._has_bank:
            options["select_every"] = 0
        if options.get("learning_rates") is None:
            options["learning_rates"] = RATES.get(method, LearningRates())
        super().__init__(base, config, task, **options)  # type: ignore[arg-type]

    def _make_model(self) -> Any:  # a PeftModel, or the base's own class
        return prepare(share_weights(self._base.model), self.method, self.config)

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
            base=self._base.label,
        )

    def _read_settings(self) -> dict[str, Any]:
        return {"method": self.method, **super()._read_settings()}


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
    listeners: Iterable[Listener] = (),
) -> Comparison:
    """Train each method from the same base on the same batches, and measure it on the same texts.

    Args:
        base, task: as for `TrainingSession`; the base's model is not changed.
        methods: names out of `METHODS`; or configs of PEFT by the names that they get here, as
            ``{"LoRA rank 1": LoraConfig(r=1, ...), "VeRA": VeraConfig(...)}``. In the order of
            the table. They are not changed.
        config: of VB-LoRA; LoRA gets its rank and targets. For methods that are named.
        steps, batch_size, seed, eval_examples: as for `TrainingSession`.
        learning_rates: peak rates by method, `RATES` by default. Fair is each method's best.
        test_examples: held-out MRs to write texts for, for BLEU and slot errors; 0 for neither.
        runs: where to keep each method's run, under the method's name: its trace and settings while
            it trains, so that even a killed process leaves what was on screen; then adapter and
            result.
        listeners: hear each run after the other.

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
    if runs is not None:
        for name in methods:
            runs.place(name)
    base = base if isinstance(base, Base) else load_base(base)
    task = task if isinstance(task, Task) else load_task(task)
    with torch.random.fork_rng():
        for name, its in configs.items():  # a trial, before the first is trained
            prepare(share_weights(base.model), name, its)
    results, traces, settings = {}, {}, {}
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
            out=None if runs is None else runs.place(name),
            save_every=0,
            listeners=listeners,
        )
        trace = session.run()
        if trace.reason != "completed":
            break
        quality = {}
        if test_examples:
            quality = measure(session.model, base.tokenizer, task.domain, task.test[:test_examples])
        result = Result.of(
            trace,
            trained_parameters=trained_parameters(session.model),
            stored_bytes=stored_bytes(session.model),
            **quality,
        )
        if runs is not None:
            runs.note(name, result)
        results[name], traces[name], settings = result, trace, session.settings
    common = {k: settings[k] for k in ("base", "task", "steps", "batch_size", "seed") if settings}
    return Comparison(results, traces, common)


def _check_method(name: str, methods: Sequence[str]) -> None:
    if name not in methods:
        by_letters = {known.lower(): known for known in methods}
        close = difflib.get_close_matches(name.lower(), by_letters, n=1)
        hint = f"; did you mean {by_letters[close[0]]!r}?" if close else ""
        raise ConfigError(f"no method is called {name!r}, only {methods}{hint}")


def trained_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that ``save_pretrained`` writes for this method's result."""
    tuner = getattr(model, "base_model", None)
    if isinstance(tuner, VBLoRAModel):
        return tuner.stored_bytes()
    if isinstance(model, PeftModel):
        return sum(tensor.nbytes for tensor in peft.get_peft_model_state_dict(model).values())
    # Tied weights are stored once.
    return sum({t.data_ptr(): t.nbytes for t in model.state_dict().values()}.values())
