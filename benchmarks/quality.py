"""What the stored bytes buy: VB-LoRA, PEFT's LoRA and full fine-tuning at equal steps.

    python benchmarks/quality.py --seeds 0 1 2

Each method trains mini-OPT on the restaurants task for the same steps, batches and schedule, and
is measured on the same held-out meaning representations. Learning rates are each method's best of
those in `RATES_TRIED`. Writes results/quality.csv (one row a run) and results/quality.md (means).
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import peft
import torch
import transformers
from safetensors import safe_open
from torch import nn

from vblora_lab import get_peft_model, load_base, load_task
from vblora_lab.bases import Base, share_weights
from vblora_lab.data import Task
from vblora_lab.demo import BATCH_SIZE, LEARNING_RATES, STEPS, demo_config
from vblora_lab.train import LearningRates, make_trainer, measure
from vblora_lab.train.prompts import IGNORED, Collator, encode_all

RESULTS = Path(__file__).parent / "results"
RATES_TRIED = {
    "VB-LoRA": "bank 1e-3, 3e-3, 5e-3, 1e-2, 2e-2 with logits 1e-2, 3e-2, 1e-1, 3e-1, 1",
    "LoRA": "1e-3, 3e-3, 6e-3, 1e-2",
    "full fine-tuning": "5e-4, 1.5e-3",
}


def no_training(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def vblora(model: nn.Module) -> nn.Module:
    return get_peft_model(model, demo_config())


def lora(model: nn.Module) -> nn.Module:
    config = demo_config()
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.r,
            target_modules=config.target_modules,
            task_type=config.task_type,
        ),
    )


def full(model: nn.Module) -> nn.Module:
    # The base keeps its weights: this method writes into them in place.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.requires_grad_(True)


METHODS: dict[str, tuple[Callable[[nn.Module], nn.Module], LearningRates | None]] = {
    "no training": (no_training, None),
    "VB-LoRA": (vblora, LEARNING_RATES),
    "LoRA": (lora, LearningRates(other=6e-3)),
    "full fine-tuning": (full, LearningRates(other=1.5e-3)),
}


def run(
    name: str, base: Base, task: Task, steps: int, seed: int, test_size: int
) -> dict[str, object]:
    """Train one method once (or not at all, without rates) and measure it."""
    prepare, rates = METHODS[name]
    torch.manual_seed(seed)
    model = prepare(share_weights(base.model))
    stored = 0
    start = time.monotonic()
    if rates is not None:
        with tempfile.TemporaryDirectory() as folder:
            make_trainer(
                model,
                base.tokenizer,
                encode_all(base.tokenizer, task.train, base.model.config.max_position_embeddings),
                eval_rows=[],
                folder=folder,
                steps=steps,
                batch_size=BATCH_SIZE,
                learning_rates=rates,
                seed=seed,
            ).train()
            stored = stored_bytes(model, Path(folder) / "stored")
    seconds = time.monotonic() - start
    return {
        "method": name,
        "seed": seed,
        "steps": steps if rates else 0,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "stored_bytes": stored,
        "validation_loss": validation_loss(model, base, task),
        **measure(model, base.tokenizer, task.domain, task.test[:test_size]),
        "seconds": seconds,
    }


def stored_bytes(model: nn.Module, folder: Path) -> int:
    """Bytes of all tensors in the files that save_pretrained writes."""
    model.save_pretrained(folder)
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            total += sum(tensors.get_tensor(key).nbytes for key in tensors.keys())  # noqa: SIM118
    return total


@torch.no_grad()
def validation_loss(model: nn.Module, base: Base, task: Task) -> float:
    """Mean cross-entropy in nats over the text tokens of 100 validation MRs."""
    rows = encode_all(
        base.tokenizer, task.validation[:100], base.model.config.max_position_embeddings
    )
    collate = Collator(base.tokenizer.pad_token_id)
    total = count = 0.0
    model.eval()
    for i in range(0, len(rows), 32):
        batch = collate(rows[i : i + 32])
        tokens = int((batch["labels"] != IGNORED).sum())
        batch = {name: tensor.to(base.model.device) for name, tensor in batch.items()}
        total += model(**batch).loss.item() * tokens
        count += tokens
    return total / count


def table(rows: Sequence[dict[str, object]]) -> str:
    """Means over seeds, and the standard deviation where there are several, as Markdown."""
    lines = [
        "| | trained parameters | stored bytes | validation loss | BLEU | slot error rate |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in METHODS:
        mine = [row for row in rows if row["method"] == name]
        if mine:
            lines.append(
                f"| {name} | {mine[0]['trained_parameters']:,} | {mine[0]['stored_bytes']:,} | "
                f"{spread(mine, 'validation_loss', 1, 3)} | {spread(mine, 'bleu', 1, 1)} | "
                f"{spread(mine, 'slot_error_rate', 100, 1)}% |"
            )
    return "\n".join(lines)


def spread(rows: Sequence[dict[str, object]], key: str, scale: float, digits: int) -> str:
    values = [scale * float(str(row[key])) for row in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--test-size", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    base, task = load_base(), load_task()
    rows = []
    for name, (_, rates) in METHODS.items():
        for seed in args.seeds if rates else args.seeds[:1]:
            rows.append(run(name, base, task, args.steps, seed, args.test_size))
            print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "quality.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    note = (
        f"{args.steps} steps of {BATCH_SIZE} pairs, seeds {args.seeds}, {args.test_size} held-out "
        f"MRs; {base.model.device.type}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, PEFT {peft.__version__}.\n\n"
        + "".join(
            f"- {name}: learning rates tried {tried}\n" for name, tried in RATES_TRIED.items()
        )
    )
    (args.out / "quality.md").write_text(f"{table(rows)}\n\n{note}", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
