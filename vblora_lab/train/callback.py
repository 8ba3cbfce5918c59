"""HF Trainer -> events: the one place where the Trainer's callbacks are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vblora_lab.selection import SubVectors, read_selection
from vblora_lab.train.events import Evaluated, Listener, Selected, Stepped


class EventCallback(TrainerCallback):  # type: ignore[misc]
    """Turns the steps and evaluations of any `transformers.Trainer` into events.

    Give it to a Trainer with ``logging_steps=1``. emit: gets the events; select_every: steps
    between two `Selected`, 0 for none; should_stop: asked after each step. With
    ``include_num_input_tokens_seen="non_padding"`` the speed in tokens is known too, else it is 0.
    """

    def __init__(
        self,
        emit: Listener,
        *,
        select_every: int = 1,
        should_stop: Callable[[], bool] = lambda: False,
        adapter_name: str = "default",
    ) -> None:
        self._emit = emit
        self._select_every = select_every
        self._should_stop = should_stop
        self._adapter_name = adapter_name
        self._sub_vectors: SubVectors | None = None
        self._start = self._tokens = self._first = 0.0
        self._rates: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._start = time.monotonic()
        self._first, self._tokens = state.global_step, state.num_input_tokens_seen

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        groups = more["optimizer"].param_groups
        self._rates = {g.get("name", str(i)): float(g["lr"]) for i, g in enumerate(groups)}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        if self._select_every and state.global_step % self._select_every == 0:
            selection = read_selection(
                more["model"], self._adapter_name, sub_vectors=self._sub_vectors
            )
            self._sub_vectors = selection.sub_vectors
            self._emit(Selected(state.global_step, selection))
        if self._should_stop():
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        seconds = time.monotonic() - self._start
        steps_per_second = (state.global_step - self._first) / seconds
        self._emit(
            Stepped(
                step=state.global_step,
                total_steps=state.max_steps,
                loss=float(logs["loss"]),
                learning_rates=self._rates,
                tokens_per_second=(state.num_input_tokens_seen - self._tokens) / seconds,
                steps_per_second=steps_per_second,
                eta_seconds=(state.max_steps - state.global_step) / steps_per_second,
                seconds=seconds,
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
        if metrics and "eval_loss" in metrics:
            self._emit(Evaluated(state.global_step, float(metrics["eval_loss"])))
