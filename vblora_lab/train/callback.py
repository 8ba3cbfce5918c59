"""What the HF Trainer does becomes events; what a session wants becomes control of the Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vblora_lab.bases import label_of
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.selection import SubVectors
from vblora_lab.runs.events import (
    Evaluated,
    Finished,
    Listener,
    Reason,
    Sample,
    Sampled,
    Selected,
    Started,
    Stepped,
    Working,
)
from vblora_lab.train.memory import peak_memory
from vblora_lab.train.optimizer import rates_of
from vblora_lab.tuner.sharded import is_cut_over_processes, whole


def describe(
    model: PeftModel, total_steps: int, step: int = 0, adapter_name: str = "default"
) -> Started:
    """The first event of a run that trains ``model`` from ``step`` on."""
    selection = read_selection(model, adapter_name)
    tuner: Any = model.base_model
    return Started(
        total_steps=total_steps,
        sub_vectors=selection.sub_vectors,
        num_vectors=selection.num_vectors,
        topk=selection.indices.shape[1],
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        stored_bytes=tuner.stored_bytes(adapter_name, only_topk=True),
        lora_stored_bytes=tuner.lora_stored_bytes(adapter_name),
        step=step,
        base=label_of(model.get_base_model()),
    )


class EventCallback(TrainerCallback):  # type: ignore[misc]
    """Turns what any `transformers.Trainer` does with a VB-LoRA model into events.

    Give it to a Trainer with ``logging_steps=1``. The speed in tokens is 0 unless the Trainer has
    ``include_num_input_tokens_seen="non_padding"``. Where several processes train, the first one
    alone emits.

    Args:
        emit: gets the events.
        select_every: steps between two `Selected`, 0 for none.
        write_samples: writes texts with the model as it is; called every ``sample_every`` steps, 0
            for never. Where it returns none, no event is emitted.
        tell_ends: emit `Started` and `Finished` where the Trainer begins and ends. After a failure
            there is no `Finished`, since the Trainer does not notify its callbacks.
        clock: returns seconds; speeds are measured with it.
        adapter_name: which adapter is trained.
    """

    def __init__(
        self,
        emit: Listener,
        *,
        select_every: int = 1,
        sample_every: int = 0,
        write_samples: Callable[[], tuple[Sample, ...]] = tuple,
        tell_ends: bool = True,
        clock: Callable[[], float] = time.monotonic,
        adapter_name: str = "default",
    ) -> None:
        self._emit = emit
        self._select_every = select_every
        self._sample_every = sample_every
        self._write_samples = write_samples
        self._tell_ends = tell_ends
        self._clock = clock
        self._adapter_name = adapter_name
        self._sub_vectors: SubVectors | None = None
        self._began = self._start = self._tokens = self._first = 0.0
        self._rates: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._began = self._start = self._clock()
        self._first, self._tokens = state.global_step, state.num_input_tokens_seen
        if self._tell_ends and state.is_world_process_zero:
            step = state.global_step
            self._emit(describe(more["model"], state.max_steps, step, self._adapter_name))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._tell_ends and state.is_world_process_zero:
            reason: Reason = "stopped" if state.global_step < state.max_steps else "completed"
            self._emit(Finished(reason, state.global_step, self._clock() - self._began))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == self._first:  # an evaluation may have come before
            self._start = self._clock()
            if state.is_world_process_zero:  # it may compile kernels and record a graph
                self._emit(Working(state.global_step, "taking the first step"))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._rates = rates_of(more["optimizer"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        if not _due(self._select_every, state, more["model"]):
            return
        with whole(more["model"]):
            selection = read_selection(
                more["model"], self._adapter_name, sub_vectors=self._sub_vectors
            )
        self._sub_vectors = selection.sub_vectors
        if state.is_world_process_zero:
            self._emit(Selected(state.global_step, selection))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **more: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if state.is_world_process_zero:
            self._tell_step(args, state, float(logs["loss"]))
        if _due(self._sample_every, state, more["model"]):
            samples = self._write_samples()
            if samples and state.is_world_process_zero:
                self._emit(Sampled(state.global_step, samples))

    def _tell_step(self, args: TrainingArguments, state: TrainerState, loss: float) -> None:
        seconds = self._clock() - self._start
        steps_per_second = (state.global_step - self._first) / seconds
        self._emit(
            Stepped(
                step=state.global_step,
                total_steps=state.max_steps,
                loss=loss,
                learning_rates=self._rates,
                tokens_per_second=(state.num_input_tokens_seen - self._tokens) / seconds,
                steps_per_second=steps_per_second,
                eta_seconds=(state.max_steps - state.global_step) / steps_per_second,
                seconds=seconds,
                peak_memory_bytes=peak_memory(args.device),
            )
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if metrics and "eval_loss" in metrics and state.is_world_process_zero:
            self._emit(Evaluated(state.global_step, float(metrics["eval_loss"])))


def _due(every: int, state: TrainerState, model: nn.Module) -> bool:
    """Whether this process has work to do: the first, or all where the model is cut over them."""
    if not every or state.global_step % every:
        return False
    return state.is_world_process_zero or is_cut_over_processes(model)


class Steering(TrainerCallback):  # type: ignore[misc]
    """Lets its owner change a Trainer's run between steps. Needs ``logging_steps=1``.

    Args:
        before_step: called with optimizer and schedule before each step.
        after_step: called with the number of each step when its events are out; may wait; returns
            whether to stop. A run that is stopped saves a checkpoint if it saves any.
        while_evaluating: called after each batch of an evaluation, which ends with an exception
            that this raises.
    """

    def __init__(
        self,
        before_step: Callable[[torch.optim.Optimizer, Any], None],
        after_step: Callable[[int], bool],
        while_evaluating: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_step, self._after_step = before_step, after_step
        self._while_evaluating = while_evaluating

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._before_step(more["optimizer"], more["lr_scheduler"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        # Not in on_step_end, which is called before the step's loss is known.
        if logs and "loss" in logs and self._after_step(state.global_step):
            end_training(args, control)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._while_evaluating()


def end_training(args: TrainingArguments, control: TrainerControl) -> None:
    """Let a Trainer end here: without an evaluation, and with a checkpoint if it saves any."""
    control.should_training_stop = True
    control.should_evaluate = False
    control.should_save = args.save_strategy != "no"
