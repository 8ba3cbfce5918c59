"""What SmolLM2-135M learns from 120 instructions, with several seeds: form, fields and loss.

    python benchmarks/instructions.py run --seeds 0 1 2
    python benchmarks/instructions.py report

It trains as `examples/instructions.py` does and measures on the 30 messages that are held out; no
rate was searched for. `run` appends a line for each seed to benchmarks/results/instructions.jsonl
and leaves out those that are there; `report` writes the table that the course shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

from instructions import distance, make_session, share_in_form, share_right, store  # noqa: E402
from records import device_name, read, write_rows  # noqa: E402

from vblora_lab.bases import SMOLLM2, load_base  # noqa: E402
from vblora_lab.data import load_task  # noqa: E402
from vblora_lab.train import write_texts  # noqa: E402

FOUND = ROOT / "benchmarks" / "results" / "instructions.jsonl"
TABLE = ROOT / "vblora_lab" / "assets" / "course" / "instructions.csv"
SHOWN = 6  # answers that are kept to be read


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train the seeds that are missing")
    run.add_argument("--model", default=SMOLLM2)
    run.add_argument("--steps", type=int, default=60)
    run.add_argument("--batch-size", type=int, default=4)
    run.add_argument("--held-out", type=int, default=30)
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


def run_all(args: argparse.Namespace) -> None:
    there = {(row["model"], row["steps"], row["batch size"], row["seed"]) for row in read(args.out)}
    for seed in args.seeds:
        if (args.model, args.steps, args.batch_size, seed) in there:
            continue
        row = one(argparse.Namespace(**{**vars(args), "seed": seed}))
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(json.dumps(row), flush=True)


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Train with one seed; what was found."""
    base = load_base(args.model)
    session = make_session(base, load_task("office"), args)
    asked = session.task.test[: args.held_out]
    before = write_texts(base.model, base.tokenizer, asked)
    started = time.perf_counter()
    trace = session.run()
    seconds = time.perf_counter() - started
    after = write_texts(session.model, base.tokenizer, asked)
    with tempfile.TemporaryDirectory() as folder:
        stored = store(session, Path(folder))
        size = (stored / "adapter_model.safetensors").stat().st_size
        far = distance(session, stored, asked[:2])
    answers = zip(asked[:SHOWN], before, after, strict=False)
    return {
        "model": args.model,
        "seed": args.seed,
        "steps": args.steps,
        "batch size": args.batch_size,
        "held out": len(asked),
        "loss": [float(trace.eval_losses[0]), float(trace.eval_losses[-1])],
        "form": [share_in_form(before), share_in_form(after)],
        "fields": [share_right(asked, before), share_right(asked, after)],
        "file bytes": size,
        "farthest logit in PEFT": far,
        "training seconds": round(seconds, 1),
        "answers": [{"asked": e.mr, "before": b, "after": a} for e, b, a in answers],
        "device": device_name(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each seed, with what was measured before and after."""
    lines = []
    for row in rows:
        measured = {
            f"{name}_{when}": row[name][i]
            for name in ("loss", "form", "fields")
            for i, when in enumerate(("before", "after"))
        }
        about = {name: row[name] for name in ("model", "seed", "steps", "device")}
        lines.append(about | measured | {"bytes": row["file bytes"]})
    return lines


def write_report(args: argparse.Namespace) -> None:
    lines = table(read(args.found))
    write_rows(args.table, lines)
    for line in lines:
        print(*(f"{name} {value}" for name, value in line.items()), sep=", ")


if __name__ == "__main__":
    sys.exit(main())
