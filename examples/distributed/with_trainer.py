"""A plain Trainer program, in one process or in many: what follows knows nothing of how many.

    accelerate launch --config_file examples/distributed/fsdp2.yaml \
        examples/distributed/with_trainer.py --out runs/fsdp2

ddp.yaml, zero2.yaml and zero3.yaml beside it do the same in other ways. `--resume` goes on from the
newest checkpoint in the folder. The adapter is left in OUT/adapter, in PEFT's format.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import peft
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

import vblora_lab
from vblora_lab.bases import load_base
from vblora_lab.data import load_task
from vblora_lab.train.prompts import encode_all, positions_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints and adapter"
    )
    parser.add_argument("--model", default="mini-opt", help="as in vblora-lab train --model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8, help="rows in each process")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    args = parser.parse_args()

    vblora_lab.register()  # PEFT's own calls below build, store and load this package's classes
    set_seed(0)  # in every process, so that all begin with the same adapter
    base = load_base(args.model, device="cpu")  # the Trainer moves it, or cuts it, by itself
    config = peft.VBLoRAConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        num_vectors=64,
        vector_length=64,
    )
    model = peft.get_peft_model(base.model, config)
    rows = encode_all(base.tokenizer, load_task("restaurants").train, positions_of(base.model))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=1e-2,
            logging_steps=5,
            save_steps=10,
            save_total_limit=2,
            bf16=torch.cuda.is_available(),  # as the config files say; DeepSpeed compares
            report_to="none",
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(base.tokenizer),
    )
    trainer.train(resume_from_checkpoint=args.resume)
    # In every process, since each may hold but a part of the adapter; the first one writes.
    model.save_pretrained(args.out / "adapter", is_main_process=trainer.is_world_process_zero())


if __name__ == "__main__":
    main()
