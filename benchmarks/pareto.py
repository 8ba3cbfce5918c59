"""Stored bytes against validation loss: VB-LoRA and what else PEFT has, on two bases.

    python benchmarks/pareto.py run --base mini-opt --workers 2
    python benchmarks/pareto.py run --train devel.csv --test test.csv --workers 12 --minutes 20
    python benchmarks/pareto.py report          # tables and plots of what there is; needs no GPU

Every method has its rates searched in the same way, and is then trained with three other seeds at
the best (`pareto_plan`). Controls leave choices, weights or the bank as they were drawn; changes
are other ways to train (`pareto_changes`). What is stored is measured in three precisions
(`pareto_trial`). Outcomes go to results/pareto-BASE.jsonl, one line for each trial, and a call goes
on where the last one ended: trials are known by their content. SmolLM2-135M trains on files in the
format of E2E; with no --train, it is left out. After a report, `python tools/notebooks.py` on the
notebooks of chapters 06 and 08 stores what they show of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from pareto_plan import ENTRIES, SEEDS, Plan, Setting
from pareto_pool import Tasks, run_all
from pareto_trial import Trial

RESULTS = Path(__file__).parent / "results"
E2E = "e2e"
SETTINGS = {
    "smollm2-135m": Setting("smollm2-135m", E2E, steps=500, batch_size=16),
    "mini-opt": Setting("mini-opt", "restaurants", steps=60, batch_size=8, validation=100),
}


class Outcomes:
    """What trials came to, by key, in one file for each base that grows by a line a trial."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()
        for base in SETTINGS:
            if self.file(base).exists():
                for line in self.file(base).read_text(encoding="utf-8").splitlines():
                    outcome = json.loads(line)
                    self.done[outcome["key"]] = outcome

    def file(self, base: str) -> Path:
        return self.folder / f"pareto-{base}.jsonl"

    def add(self, trial: Trial, outcome: Mapping[str, Any]) -> None:
        if "failed" in outcome:
            self.failed.add(trial.key)
            print(f"{trial.name}, seed {trial.seed}: {outcome['failed']}", flush=True)
            return
        row = {"key": trial.key, **dataclasses.asdict(trial), **outcome}
        self.done[trial.key] = row
        with open(self.file(trial.base), "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, default=sorted) + "\n")


def versions() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"{where}, torch {torch.__version__}, transformers {transformers.__version__}, PEFT "
        f"{peft.__version__}, Python {platform.python_version()}"
    )


def run(args: argparse.Namespace) -> None:
    start = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes, tasks = Outcomes(args.out), tasks_of(args)
    plans = []
    for base in args.base or SETTINGS:
        setting = SETTINGS[base]
        if setting.task in tasks or setting.task != E2E:
            setting = dataclasses.replace(setting, steps=args.steps or setting.steps)
            plans.append(Plan(setting, ENTRIES[base](), outcomes.failed))

    def choose(running: set[str]) -> Trial | None:
        waiting = [
            (turn, i, trial)
            for i, plan in enumerate(plans)
            for turn, trial in plan.wanted(outcomes.done, args.study)
            if trial.key not in running and args.only in trial.name
        ]
        return min(waiting, key=lambda each: each[:2])[2] if waiting else None

    def told(trial: Trial, outcome: dict[str, Any]) -> None:
        outcomes.add(trial, outcome)
        if "failed" not in outcome:
            print(
                f"{time.monotonic() - start:5.0f} s  {len(outcomes.done):4} done  {trial.base:12}  "
                f"{trial.name}  rate {trial.rate:g}  seed {trial.seed}  loss "
                f"{outcome['loss']['float32']}  {outcome.get('seconds', {}).get('all', 0):.0f} s, "
                f"{1000 * outcome.get('seconds_per_step', 0):.0f} ms a step",
                flush=True,
            )

    print(versions(), flush=True)
    deadline = start + 60 * args.minutes
    workers = args.workers * max(1, torch.cuda.device_count())
    run_all(choose, told, tasks, args.out, workers, deadline)


def tasks_of(args: argparse.Namespace) -> Tasks:
    return {E2E: {"train": args.train, "test": args.test}} if args.train and args.test else {}


def report(args: argparse.Namespace) -> None:
    from pareto_report import write

    plans = {base: Plan(SETTINGS[base], ENTRIES[base](), set()) for base in SETTINGS}
    write(plans, Outcomes(RESULTS).done, RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="train what is missing")
    runs.add_argument("--base", nargs="+", choices=list(SETTINGS), help="all by default")
    runs.add_argument("--train", type=Path, help="CSV file in the format of E2E")
    runs.add_argument("--test", type=Path, help="another, for the texts that are written")
    runs.add_argument("--workers", type=int, default=1, help="processes side by side, on each GPU")
    runs.add_argument("--minutes", type=float, default=1e6, help="end after so many")
    runs.add_argument("--steps", type=int, help="in place of each base's own number")
    runs.add_argument(
        "--study", nargs="+", choices=list(SEEDS), default=list(SEEDS), help="all by default"
    )
    runs.add_argument("--only", default="", help="a part of the names of what is trained")
    runs.set_defaults(do=run)
    reports = commands.add_parser("report", help="write tables and plots of what there is")
    reports.set_defaults(do=report)
    runs.add_argument("--out", type=Path, default=RESULTS, help="folder of outcomes")
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
