"""The HF Trainer as the lab sets it up, for VB-LoRA and for what it is compared to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vblora_lab.train.batches import Row, arrange
from vblora_lab.train.captured import CapturingTrainer
from vblora_lab.train.optimizer import WARM_UP, LearningRates, make_optimizer
from vblora_lab.train.prompts import Collator


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
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """A quiet Trainer that logs every step and saves nothing; rows as `prompts.encode` makes them.

    AdamW with the rates of `make_optimizer`, falling linearly after a warm-up of 6% of the steps;
    batches as `arrange` makes them; on CUDA bfloat16 autocast and captured steps, else float32.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=32,
        train_sampling_strategy="sequential",  # the order is made by `arrange`
        lr_scheduler_type="linear",
        warmup_steps=WARM_UP,
        max_grad_norm=0.0,
        logging_steps=1,
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=seed,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        dataloader_pin_memory=on_gpu,
    )
    trainer = CapturingTrainer(
        model=model,
        args=arguments,
        train_dataset=arrange(train_rows, batch_size, steps, seed),
        eval_dataset=eval_rows,
        # A captured step is for one length, so there should be few of them.
        data_collator=Collator(tokenizer.pad_token_id, multiple=_multiple(model) if on_gpu else 1),
        optimizers=(make_optimizer(model, learning_rates), None),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _multiple(model: nn.Module) -> int:
    """32 tokens, or as much of it as the model's positions are a multiple of."""
    config = getattr(model, "config", None)
    return math.gcd(32, getattr(config, "max_position_embeddings", 32))
