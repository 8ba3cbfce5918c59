"""What `benchmarks/quality.py` measured, as it ships with the package."""

from __future__ import annotations

import csv
from pathlib import Path

from vblora_lab.runs.repeats import Repeats
from vblora_lab.runs.results import Result

QUALITY = Path(__file__).resolve().parents[1] / "assets" / "course" / "quality.csv"


def quality(file: Path = QUALITY) -> Repeats:
    """Methods with all linear layers of mini-OPT, trained for longer and measured on more texts.

    Args:
        file: one row a run, as the benchmark writes it.

    The base without an adapter is among the results, as "no training".
    """
    results: dict[str, list[Result]] = {}
    steps = set()
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            result = Result(
                trained_parameters=int(row["trained_parameters"]),
                stored_bytes=int(row["stored_bytes"]),
                loss=float(row["validation_loss"]),
                bleu=float(row["bleu"]),
                slot_error_rate=float(row["slot_error_rate"]),
            )
            results.setdefault(row["method"], []).append(result)
            steps.add(int(row["steps"]))
    return Repeats(results, {"base": "mini-opt", "task": "restaurants", "steps": max(steps)})
