"""The HF Trainer as it is set up here, for VB-LoRA and for the methods it is compared to."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from vblora_lab.errors import BatchTooLargeError, ConfigError
from vblora_lab.runs.control import Interrupted
from vblora_lab.runs.events import Listener, Saved, SaveFailed, Working
from vblora_lab.train.batches import Row, arrange
from vblora_lab.train.callback import end_training
from vblora_lab.train.capturing import CapturingTrainer
from vblora_lab.train.checkpoints import Checkpoints
from vblora_lab.train.devices import device_of, take_device
from vblora_lab.train.guard import Guard, largest_that_fits
from vblora_lab.train.locked import unlocked
from vblora_lab.train.optimizer import WARM_UP, LearningRates, make_optimizer, rates_of
from vblora_lab.train.prompts import Collator
from vblora_lab.train.run_files import WRITE_ERRORS
from vblora_lab.tuner.seam import using
from vblora_lab.tuner.sharded import whole


class LabTrainer(CapturingTrainer):
    """A Trainer that watches its numbers, and whose checkpoints are whole or absent.

    It overrides private methods of Trainer where that has no public ones: for where and how a
    checkpoint is written and read.

    Attributes:
        guard: judges each step.
        learning_rates: peak rates, for `make_optimizer`.
        emit: gets `Saved`, `SaveFailed`, and `Working` while it evaluates.
        rows: those that batches are drawn from.
        checkpoints: where they are kept; None for nowhere.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    guard: Guard
    learning_rates: LearningRates
    emit: Listener
    rows: Sequence[Row]
    checkpoints: Checkpoints | None = None
    _evaluated = 0  # rows of the evaluation that goes on

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of `make_optimizer`. Called here, since FSDP takes none that was made."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.learning_rates)
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one batch; returns its loss, a scalar.

        Raises:
            DivergedError: loss or gradients are not finite, or the loss exploded.
            BatchTooLargeError: the CUDA device's memory is too small for it.
        """
        no_memory = False
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.cuda.OutOfMemoryError:
            no_memory = True  # the exception itself would keep the activations alive
        if no_memory:
            self.model.zero_grad()
            raise BatchTooLargeError(self._what_fits(inputs))
        # The same number in every process, so that all stop together.
        of_all = self.accelerator.reduce(loss.detach(), "mean")
        self.guard.check(self.state.global_step + 1, of_all, inputs, rates_of(self.optimizer))
        return loss

    def _what_fits(self, inputs: dict[str, Tensor]) -> str:
        rows, length = inputs["input_ids"].shape
        start = f"a batch of {rows} x {length} tokens does not fit into the GPU's memory"
        # This batch is as long as its own texts; what is named must fit for the longest there are.
        by_length = sorted(self.rows, key=lambda row: -len(row["input_ids"]))
        batch = self._prepare_inputs(self.data_collator(by_length[:rows]))
        trained = [p for p in self.model.parameters() if p.requires_grad]

        def attempt(part: Any) -> None:
            with self.compute_loss_context_manager():
                loss = self.model(**part).loss
            # Not backward(): other processes would wait for gradients, and .grad stays as it is.
            torch.autograd.grad(loss, trained, allow_unused=True)

        longest = batch["input_ids"].shape[1]
        found = largest_that_fits(attempt, batch)
        if found is None:
            return f"{start}, and not a single token does: other programs, or the model, fill it."
        choice = f"Choose batch_size={found[0] * self.args.world_size}"
        return f"{start}; {found[0]} x {found[1]} fits. {choice}" + (
            "." if found[1] == longest else f" and texts of at most {found[1]} tokens."
        )

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        """Evaluate as a Trainer does; one that is interrupted reports nothing and ends the run."""
        self._evaluated = 0
        self._tell_evaluated()
        try:
            return super().evaluate(*args, **more)  # type: ignore[no-any-return]
        except Interrupted:
            end_training(self.args, self.control)
            return {}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *more: Any, **named: Any
    ) -> Any:
        """Evaluate one batch as a Trainer does, and say so."""
        found = super().prediction_step(model, inputs, *more, **named)
        self._evaluated += len(inputs["labels"]) * self.args.world_size
        self._tell_evaluated()
        return found

    def _tell_evaluated(self) -> None:
        total = len(cast(Sized, self.eval_dataset))
        done = min(self._evaluated, total)  # processes fill up the last batch
        self.emit(Working(self.state.global_step, "measuring the loss", done, total))

    def _prepare_for_training(self, *args: Any, **more: Any) -> Any:
        with unlocked(self.model):  # DeepSpeed changes dtypes, and loads its checkpoints here
            return super()._prepare_for_training(*args, **more)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Store the adapter, whole, however it is cut over processes. All must call it."""
        with whole(self.model):
            self._save(output_dir)  # which writes in the first process alone

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with unlocked(self.model), using():  # loading is refused to others while it trains
            if self.is_fsdp_enabled:  # the file that `save_model` wrote; each process cuts it
                stored = load_file(Path(resume_from_checkpoint) / SAFETENSORS_WEIGHTS_NAME)
                set_peft_model_state_dict(self.model, stored)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.aside if self.checkpoints else super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside and move it into place. A failure is reported, not raised."""
        if self.checkpoints is None:
            return super()._save_checkpoint(model, trial)
        step = self.state.global_step
        problem = ""
        try:
            super()._save_checkpoint(model, trial)
        except WRITE_ERRORS as error:
            problem = str(error)
        # Each process wrote its random state: all must have succeeded.
        failures = self.accelerator.reduce(torch.tensor(float(bool(problem))).to(self.args.device))
        if not self.is_world_process_zero():
            return None
        try:
            if failures:
                raise OSError(problem or "another process could not write its random state")
            place = self.checkpoints.bring_in(step)
        except OSError as error:
            self.emit(SaveFailed(step, f"checkpoint of step {step} not saved: {error}"))
        else:
            self.emit(Saved(step, str(place)))
        return None


def make_trainer(
    model: nn.Module,
    tokenizer: Tokenizer,
    train_rows: Sequence[Row],
    eval_rows: Sequence[Row],
    *,
    folder: str | Path,
    steps: int,
    batch_size: int,
    learning_rates: LearningRates,
    seed: int,
    eval_first: bool = False,
    eval_every: int = 0,
    checkpoints: Checkpoints | None = None,
    save_every: int = 0,
    emit: Listener = lambda _: None,
    callbacks: Sequence[TrainerCallback] = (),
) -> LabTrainer:
    """A quiet Trainer that logs every step; rows as `prompts.encode` makes them.

    AdamW with the rates of `make_optimizer`, falling linearly after a warm-up of 6% of the steps;
    batches as `arrange` makes them; on CUDA bfloat16 autocast and captured steps, else float32.
    Where several processes train (torchrun, accelerate launch), each takes its share of a batch.

    folder: for the Trainer, which leaves nothing in it. checkpoints: get a new one every
    ``save_every`` steps and at the end. eval_first: evaluate when training begins (calling
    `evaluate` before `train` would leave the gradients of several processes apart: accelerate takes
    the model for prepared). eval_every: steps between evaluations; 0 for none.

    Raises `ConfigError` where the batch can't be shared evenly by the processes.
    """
    device = device_of(model)
    on_gpu = device.type == "cuda"
    arguments = _arguments(
        device,
        batch_size,
        output_dir=str(folder),
        max_steps=steps,
        eval_strategy="steps" if eval_every else "no",
        eval_steps=eval_every or None,
        eval_on_start=eval_first,
        save_strategy="steps" if checkpoints and save_every else "no",
        save_steps=save_every or 1,
        seed=seed,
    )
    trainer = LabTrainer(
        model=model,
        args=arguments,
        train_dataset=arrange(train_rows, batch_size, steps, seed),
        eval_dataset=eval_rows,
        # A captured step is for one length, so there should be few lengths.
        data_collator=Collator(tokenizer.pad_token_id, multiple=_multiple(model) if on_gpu else 1),
        callbacks=list(callbacks),
    )
    trainer.guard, trainer.rows = Guard(model), train_rows
    trainer.learning_rates = learning_rates
    trainer.emit, trainer.checkpoints = emit, checkpoints
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(device: torch.device, batch_size: int, **more: Any) -> TrainingArguments:
    """What all runs here have in common, and ``more``. Raises as `make_trainer`."""
    on_gpu = device.type == "cuda"
    arguments = TrainingArguments(
        per_device_train_batch_size=batch_size,  # of all processes; shared below
        per_device_eval_batch_size=batch_size,  # what fits for training fits here
        train_sampling_strategy="sequential",  # the order is made by `arrange`
        lr_scheduler_type="linear",
        warmup_steps=WARM_UP,
        max_grad_norm=0.0,
        logging_steps=1,
        logging_nan_inf_filter=False,  # `Guard` looks for such losses
        include_num_input_tokens_seen="non_padding",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not on_gpu,
        bf16=on_gpu,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
        **more,
    )
    take_device(arguments, device)
    processes = arguments.world_size
    if batch_size % processes:
        raise ConfigError(
            f"batch_size={batch_size} can't be shared evenly by {processes} processes; "
            f"the next that can is {-(-batch_size // processes) * processes}"
        )
    arguments.per_device_train_batch_size = batch_size // processes
    return arguments


def _multiple(model: nn.Module) -> int:
    """What lengths of batches are a multiple of: 32, or the most of it that divides positions."""
    config = getattr(model, "config", None)
    return math.gcd(32, getattr(config, "max_position_embeddings", 32))
