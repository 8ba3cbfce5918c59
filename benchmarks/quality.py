"""What the stored bytes buy: VB-LoRA, other methods of PEFT and full fine-tuning at equal steps.

    python benchmarks/quality.py --seeds 0 1 2
    python benchmarks/quality.py --seeds 3 --methods VeRA IA3    # adds these runs to the others

Each method trains mini-OPT on the restaurants task for the same steps, batches and schedule, and
is measured on the same held-out meaning representations. Learning rates are each method's best of
those in `RATES_TRIED`. Writes quality.csv, which ships with the package for chapter 08 of the
course (one row per run; it replaces an earlier one of the same method and seed), and
results/quality.md (means).
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftConfig
from safetensors import safe_open
from torch import nn

from vblora_lab import load_base, load_task
from vblora_lab.app.demo import BATCH_SIZE, STEPS, demo_config
from vblora_lab.bases import Base, share_weights
from vblora_lab.course.measured import QUALITY
from vblora_lab.data import Task
from vblora_lab.train import SHORT_RUN_RATES, LearningRates, make_trainer, measure
from vblora_lab.train.methods import prepare
from vblora_lab.train.prompts import IGNORED, Collator, encode_all

TABLE = Path(__file__).parent / "results" / "quality.md"
RATES_TRIED = {
    "VB-LoRA": "bank 1e-3, 3e-3, 5e-3, 1e-2, 2e-2 with logits 1e-2, 3e-2, 1e-1, 3e-1, 1",
    "LoRA": "1e-3, 3e-3, 6e-3, 1e-2",
    "LoRA rank 1": "1e-2, 2e-2, 4e-2, 8e-2 (which diverges)",
    "VeRA": "3e-2, 5e-2, 1e-1, 2e-1",
    "IA3": "2e-2, 5e-2, 1e-1, 2e-1",
    "full fine-tuning": "5e-4, 1.5e-3",
}
NONE = "no training"


def methods() -> dict[str, tuple[PeftConfig, LearningRates]]:
    """What each method injects (in all linear layers), and its peak rates."""
    common = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        # VeRA's random matrices are drawn again from their seed, as its paper counts bytes.
        warnings.filterwarnings("ignore", message=".*not save vera_A")
        vera = peft.VeraConfig(r=256, save_projection=False, **common)
    return {
        "VB-LoRA": (demo_config(), SHORT_RUN_RATES),
        "LoRA": (demo_config(), LearningRates(other=6e-3)),  # of the same rank, 16
        "LoRA rank 1": (peft.LoraConfig(r=1, lora_alpha=1, **common), LearningRates(other=2e-2)),
        "VeRA": (vera, LearningRates(other=2e-1)),
        "IA3": (
            peft.IA3Config(feedforward_modules=["fc2"], **common),
            LearningRates(other=1e-1),
        ),
        "full fine-tuning": (demo_config(), LearningRates(other=1.5e-3)),
    }


def run(
    name: str, base: Base, task: Task, steps: int, seed: int, test_size: int
) -> dict[str, object]:
    """Train one method once (or none) and measure it."""
    torch.manual_seed(seed)
    model: nn.Module = share_weights(base.model).requires_grad_(False)
    stored = 0
    start = time.monotonic()
    if name == NONE:
        steps = 0
    else:
        config, rates = methods()[name]
        model = prepare(model, name, config)
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
        "steps": steps,
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
        "| | trained parameters | stored bytes | validation loss | BLEU | slot errors | seeds |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name in (NONE, *methods()):
        mine = [row for row in rows if row["method"] == name]
        if mine:
            lines.append(
                f"| {name} | {int(str(mine[0]['trained_parameters'])):,} | "
                f"{int(str(mine[0]['stored_bytes'])):,} | "
                f"{spread(mine, 'validation_loss', 1, 3)} | {spread(mine, 'bleu', 1, 1)} | "
                f"{spread(mine, 'slot_error_rate', 100, 1)}% | "
                f"{', '.join(str(row['seed']) for row in mine)} |"
            )
    return "\n".join(lines)


def spread(rows: Sequence[dict[str, object]], key: str, scale: float, digits: int) -> str:
    values = [scale * float(str(row[key])) for row in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def read(file: Path) -> dict[tuple[str, int], dict[str, object]]:
    """The runs of an earlier call, by method and seed."""
    if not file.exists():
        return {}
    with open(file, newline="", encoding="utf-8") as lines:
        return {(row["method"], int(row["seed"])): dict(row) for row in csv.DictReader(lines)}


def write(rows: Sequence[dict[str, object]], file: Path, summary: Path, note: str) -> None:
    with open(file, "w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    tried = "".join(
        f"- {name}: learning rates tried {text}\n" for name, text in RATES_TRIED.items()
    )
    summary.write_text(f"{table(rows)}\n\n{note}\n\n{tried}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [NONE, *methods()]
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--test-size", type=int, default=200)
    parser.add_argument("--csv", type=Path, default=QUALITY, help="all runs; these are added")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    base, task = load_base(), load_task()
    runs = read(args.csv)
    others = {row["steps"] for (name, _), row in runs.items() if name != NONE} - {str(args.steps)}
    if others:
        parser.error(f"the runs in {args.csv} have {others} steps: choose another --csv")
    device = base.model.device
    where = (
        f"{torch.cuda.get_device_name(device)}, bfloat16 autocast"
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads of a CPU ({platform.machine()})"
    )
    note = (
        f"{args.steps} steps of {BATCH_SIZE} pairs, {args.test_size} held-out MRs, mean ± standard "
        f"deviation over seeds; {where}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, PEFT {peft.__version__}."
    )
    for name in args.methods:
        for seed in args.seeds if name != NONE else args.seeds[:1]:
            runs[name, seed] = run(name, base, task, args.steps, seed, args.test_size)
            print(runs[name, seed], flush=True)
            in_order = sorted(runs, key=lambda key: (names.index(key[0]), key[1]))
            write([runs[key] for key in in_order], args.csv, args.table, note)
    print(table(list(runs.values())))


if __name__ == "__main__":
    main()
