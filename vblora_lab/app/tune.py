"""``vblora-lab tune``: the config and rates that do best in an adapter of so many bytes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vblora_lab.app.options import add_number_options, at_least
from vblora_lab.files import whole_file

if TYPE_CHECKING:
    from vblora_lab.train.tune_result import Tuned

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
FRONT, TABLE, CODE = "front.png", "trials.csv", "best.py"


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `argparse`."""
    tune = commands.add_parser(
        "tune",
        help="search for the config and learning rates that do best in so many bytes",
        description="Search for the VB-LoRA config and the learning rates with the lowest "
        "validation loss, among those whose adapter's file fits into so many bytes. Ctrl-C ends "
        "the search after the step in progress; the same command goes on, also after a crash. "
        "Needs Optuna: pip install 'vblora-lab[tune]'.",
    )
    tune.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="mini-opt",
        help="mini-opt (the default), a hub name such as facebook/opt-125m, or a folder",
    )
    tune.add_argument(
        "--task", default="restaurants", help="name of a task (default: restaurants), or FILE.csv"
    )
    tune.add_argument("--out", type=Path, required=True, help="folder of the search")
    tune.add_argument(
        "--bytes",
        type=size,
        default=250_000,
        metavar="SIZE",
        help="that the adapter's file may have: 250k is 250,000, 250KiB 256,000 (default: 250k)",
    )
    tune.add_argument("--memory", type=size, metavar="SIZE", help="that training may take")
    tune.add_argument(
        "--methods",
        nargs="+",
        default=["vblora"],
        metavar="METHOD",
        help="vblora (the default), lora or both",
    )
    _add_numbers(tune)
    tune.set_defaults(run=run)


def _add_numbers(tune: argparse.ArgumentParser) -> None:
    numbers = (
        ("trials", 40, 1, "candidates to train"),
        ("steps", 200, 1, "optimizer steps of a trial"),
        ("batch-size", 8, 1, "pairs of meaning and text per step"),
        ("seed", 0, 0, "draws candidates, adapters and data order"),
        ("eval-examples", 64, 1, "validation examples of an evaluation"),
        ("prune-after", 5, 1, "trials that run to their end before any is cut short"),
    )
    add_number_options(tune, numbers)
    tune.add_argument(
        "--eval-every",
        type=at_least(0),
        metavar="N",
        help="steps between evaluations, after which a trial may be cut short; 0: never (default: "
        "a quarter of the steps)",
    )


def size(text: str) -> int:
    """An argparse type: bytes, as "250000", "250k", "1.5M" or "250KiB"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]?|[kmg]ib)b?", text.strip().lower())
    if not found or int(float(found[1]) * UNITS[found[2]]) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of bytes, such as 250000, 250k, 1.5M or 250KiB"
        )
    return int(float(found[1]) * UNITS[found[2]])


def run(args: argparse.Namespace) -> int:
    from vblora_lab.train.tune import tune

    options = (
        "bytes", "trials", "methods", "memory", "steps", "batch_size", "seed", "eval_examples",
        "eval_every", "prune_after", "out",
    )  # fmt: skip
    given = {name: getattr(args, name) for name in options}
    tuned = tune(args.model, args.task, **given, tell=lambda text: print(text, flush=True))
    write(tuned, args.out)
    print(tuned)
    best = tuned.best
    print(f"Best: {best.name}, validation loss {best.loss:.4f} nats per token")
    print(f"Left in {args.out}: {FRONT}, {TABLE}, {CODE}, and {best.name}/adapter/ among the runs")
    return 0


def write(tuned: Tuned, out: Path) -> None:
    """Write the figure, the table and the code of a search into a folder. Raises `OSError`."""
    from vblora_lab.plots.tune import tune_figure

    with whole_file(out / FRONT) as new:
        tune_figure(tuned).savefig(new, dpi=150, format="png")
    for name, text in ((TABLE, tuned.to_csv()), (CODE, tuned.code)):
        with whole_file(out / name) as new:
            new.write_text(text, encoding="utf-8")
