"""The HF Trainer as the lab sets it up, for VB-LoRA and for what it is compared to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vblora_lab.train.batches import Row, arrange
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
    batches as `arrange` makes them; bfloat16 autocast on CUDA, float32 elsewhere.
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
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=arrange(train_rows, batch_size, steps, seed),
        eval_dataset=eval_rows,
        data_collator=Collator(tokenizer.pad_token_id),
        optimizers=(make_optimizer(model, learning_rates), None),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
