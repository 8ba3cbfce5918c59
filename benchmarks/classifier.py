"""How well VB-LoRA, LoRA of about as many bytes, and a head alone tell texts apart.

    python benchmarks/classifier.py run --train devel.csv --test test.csv
    python benchmarks/classifier.py report

The texts are those of cleaned E2E (columns mr and ref), written by people; the question is what a
text says about families: that they are welcome, that they are not, or nothing. Each method is
trained by `examples/classifier.py` at each rate of one ladder, with seed 0; the rate whose accuracy
on held-out training texts is best is used for the other seeds. A seed draws the texts to train on,
their order, the head and the adapter. `run` appends a line for each run to
benchmarks/results/classifier.jsonl and leaves out those that are there; `report` writes the table
that the course shows.

A head alone isn't trained in steps but to its optimum, on features that are computed once: logistic
regression, with the weight of its penalty chosen as the others' rates are.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

from classifier import Rows, accuracy, itemised, train  # noqa: E402
from records import device_name, read, write_rows  # noqa: E402

from vblora_lab import VBLoRAConfig, get_peft_model  # noqa: E402
from vblora_lab.bases import MINILM, Base, load_classifier  # noqa: E402
from vblora_lab.data import read_csv  # noqa: E402

FOUND = ROOT / "benchmarks" / "results" / "classifier.jsonl"
TABLE = ROOT / "vblora_lab" / "assets" / "course" / "classifier.csv"
SLOT, LABELS = "familyFriendly", ("no", "not said", "yes")
HEAD_RATE = 5e-3  # of every method that trains the head in steps
RATES = (2e-3, 5e-3, 1e-2, 2e-2)  # of the bank, with ten times that for logits, and of LoRA
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
METHODS: dict[str, dict[str, Any] | None] = {
    "head alone": None,
    "VB-LoRA r=4, q and v, 64x64": {
        "r": 4, "num_vectors": 64, "vector_length": 64, "save_only_topk_weights": True,
    },
    "LoRA r=1, v": {"r": 1, "lora_alpha": 1, "target_modules": ["value"]},
    "LoRA r=1, q and v": {"r": 1, "lora_alpha": 1, "target_modules": ["query", "value"]},
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train what is missing")
    run.add_argument("--train", type=Path, required=True, help="CSV with the columns mr and ref")
    run.add_argument("--test", type=Path, required=True, help="the same, with other MRs")
    run.add_argument("--texts", type=int, default=1000, help="to train on")
    run.add_argument("--held-out", type=int, default=400, help="to validate; as many to test")
    run.add_argument("--steps", type=int, default=200)
    run.add_argument("--batch-size", type=int, default=16)
    run.add_argument("--rates", type=float, nargs="+", default=RATES, help="of adapters")
    run.add_argument("--methods", nargs="+", default=[""], help="those with this in their names")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--out", type=Path, default=FOUND)
    run.set_defaults(do=run_all)
    report = commands.add_parser("report", help="write the course's table")
    report.add_argument("--found", type=Path, default=FOUND)
    report.add_argument("--table", type=Path, default=TABLE)
    report.set_defaults(do=write_report)
    args = parser.parse_args(argv)
    args.do(args)
    return 0


# --- the runs


def run_all(args: argparse.Namespace) -> None:
    """The search of each method, then its other seeds."""
    for method in [name for name in METHODS if any(part in name for part in args.methods)]:
        ladder = PENALTIES if METHODS[method] is None else args.rates
        searched = [one(args, method, rate, args.seeds[0]) for rate in ladder]
        best = max(searched, key=lambda row: row["validation accuracy"])["rate"]
        for seed in args.seeds[1:]:
            one(args, method, best, seed)


def one(args: argparse.Namespace, method: str, rate: float, seed: int) -> dict[str, Any]:
    """What a run found; it is trained if it isn't in the file yet."""
    asked = {
        "method": method, "rate": rate, "seed": seed, "steps": args.steps,
        "batch size": args.batch_size, "texts": args.texts, "held out": args.held_out,
    }  # fmt: skip
    for row in read(args.out):
        if asked.items() <= row.items():
            return row
    started = time.perf_counter()
    measure = head_alone if METHODS[method] is None else with_adapter
    row = {
        **asked,
        **measure(args, method, rate, seed),
        "seconds": round(time.perf_counter() - started, 1),
        "device": device_name(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    }
    with open(args.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
    return row


def with_adapter(args: argparse.Namespace, method: str, rate: float, seed: int) -> dict[str, Any]:
    """Train adapter and head in steps."""
    training, validation, test = texts_of(args, seed)
    base = load_classifier(MINILM, LABELS, seed=seed)
    torch.manual_seed(seed)
    model = adapted(base, method)
    settings = argparse.Namespace(steps=args.steps, batch_size=args.batch_size, seed=seed)
    optimizer = torch.optim.AdamW(groups(model, rate), weight_decay=0.0)
    losses = train(model, base, training, optimizer=optimizer, args=settings)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        sizes = parts(Path(folder))
    return {
        "last loss": losses[-1],
        "bytes": sizes,
        "validation accuracy": accuracy(model, base, validation),
        "test accuracy": accuracy(model, base, test),
    }


def texts_of(args: argparse.Namespace, seed: int) -> tuple[Rows, Rows, Rows]:
    """Texts to train on, to validate and to test; no MR of one is in another."""

    def labelled(examples: Any) -> list[tuple[str, str]]:
        said = [(e, e.facts.get(SLOT, "not said")) for e in examples]
        # A few MRs say both yes and no: such a text has no one label.
        return [(text, s) for e, s in said if isinstance(s, str) for text in e.references]

    examples = list(read_csv(args.train))
    random.Random(0).shuffle(examples)  # the same are held out, whatever the seed
    cut = len(examples) // 4
    validation, test = labelled(examples[:cut]), labelled(read_csv(args.test))
    training = labelled(examples[cut:])
    held_out = random.Random(0)
    return (
        random.Random(seed).sample(training, args.texts),
        held_out.sample(validation, args.held_out),
        held_out.sample(test, args.held_out),
    )


def adapted(base: Base, method: str) -> torch.nn.Module:
    settings = METHODS[method] or {}
    if method.startswith("VB-LoRA"):
        return get_peft_model(base.model, VBLoRAConfig(**settings, task_type="SEQ_CLS"))
    return peft.get_peft_model(base.model, peft.LoraConfig(**settings, task_type="SEQ_CLS"))


def groups(model: torch.nn.Module, rate: float) -> list[dict[str, Any]]:
    """The head at one rate for all methods, logits at ten times that of the bank or of LoRA."""
    rates = {"head": HEAD_RATE, "logits": 10 * rate, "adapter": rate}
    found: dict[str, list[torch.nn.Parameter]] = {kind: [] for kind in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "logits" if "vblora_logits" in name else "adapter"
            found["head" if "classifier" in name else kind].append(parameter)
    return [{"params": found[kind], "lr": rate} for kind, rate in rates.items() if found[kind]]


def parts(folder: Path) -> dict[str, int]:
    """As `itemised`; LoRA has matrices in place of bank, indices and weights."""
    sizes = itemised(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    matrices = sum(tensor.nbytes for name, tensor in stored.items() if ".lora_" in name)
    sizes["head"] -= matrices
    return {"matrices": matrices, **sizes}


def head_alone(args: argparse.Namespace, _: str, penalty: float, seed: int) -> dict[str, Any]:
    """Set the head to the optimum of a penalised logistic regression on what comes into it."""
    (x, y), validation, test = features_of(args.train, args.test, args.texts, args.held_out, seed)
    head = torch.nn.Linear(x.shape[1], len(LABELS), device=x.device)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(x), y)
        value = value + penalty * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    size = sum(p.nbytes for p in head.parameters())
    return {
        "last loss": float(loss().detach()),
        "bytes": {"head": size, "all of the file": size},
        "validation accuracy": share_found(head, *validation),
        "test accuracy": share_found(head, *test),
    }


def share_found(head: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((head(x).argmax(-1) == y).float().mean())


@functools.cache
def features_of(
    train: Path, test: Path, texts: int, held_out: int, seed: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each split, what comes into the head (texts, width), and the labels' numbers (texts,)."""
    asked = argparse.Namespace(train=train, test=test, texts=texts, held_out=held_out)
    base = load_classifier(MINILM, LABELS)
    found: list[torch.Tensor] = []
    base.model.classifier.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    splits = []
    for rows in texts_of(asked, seed):
        found.clear()
        accuracy(base.model, base, rows)  # in evaluation mode, so without dropout
        numbers = [base.model.config.label2id[label] for _, label in rows]
        splits.append((torch.cat(found), torch.tensor(numbers, device=base.model.device)))
    return splits


# --- what they say


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each method: its best rate, its bytes, and the accuracy of each seed at that."""
    lines = []
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        first = own[0]["seed"]
        searched = [row for row in own if row["seed"] == first]
        best = max(searched, key=lambda row: row["validation accuracy"])["rate"]
        at_best = [row for row in own if row["rate"] == best]
        found = [row["test accuracy"] for row in at_best]
        sizes = at_best[0]["bytes"]
        lines.append(
            {
                "method": method,
                "rate": best,
                "rates_tried": len(searched),
                "bytes": sizes["all of the file"],
                "head_bytes": sizes["head"],
                "accuracy": statistics.mean(found),
                "accuracies": " ".join(f"{value:.4f}" for value in found),
                "texts": at_best[0]["texts"],
                "steps": at_best[0]["steps"],
                "device": at_best[0]["device"],
            }
        )
    return lines


def write_report(args: argparse.Namespace) -> None:
    lines = table(read(args.found))
    write_rows(args.table, lines)
    for line in lines:
        print(f"{line['method']:28} {line['bytes']:>8,} bytes  {line['accuracies']}")


if __name__ == "__main__":
    sys.exit(main())
