"""What the benchmarks measured, as it ships for the course."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vblora_lab.runs.repeats import Repeats
from vblora_lab.runs.results import Result

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "course"
QUALITY, CURVE, CONTROLS, CHANGES = (
    FOLDER / f"{name}.csv" for name in ("quality", "curve", "controls", "changes")
)
CLASSIFIER, INSTRUCTIONS = (FOLDER / f"{name}.csv" for name in ("classifier", "instructions"))


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


def classifier(file: Path = CLASSIFIER) -> list[dict[str, str]]:
    """What `benchmarks/classifier.py` measured of MiniLM: a row for each method, as written."""
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def instructions(file: Path = INSTRUCTIONS) -> list[dict[str, str]]:
    """What `benchmarks/instructions.py` measured of SmolLM2-135M: a row for each seed."""
    return classifier(file)


@dataclass(frozen=True)
class Losses:
    """Validation losses of one thing that was trained, in nats per token.

    Attributes:
        searched: with the seed that its learning rates were chosen with, so a little too good.
        others: with other seeds.
    """

    searched: float | None
    others: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the other seeds; where there are none yet, the search's."""
        return statistics.mean(self.others) if self.others else self.all[0]

    @property
    def all(self) -> tuple[float, ...]:
        """The search's first, if it is there."""
        return (() if self.searched is None else (self.searched,)) + self.others


@dataclass(frozen=True)
class Point:
    """A method of some size, as it would be stored with numbers of so many bits.

    Attributes:
        name, family: "LoRA r=4, q and v" and "LoRA, q and v".
        bits: 32, 16 or 8; rounded after training.
        size: bytes.
        losses: as rounded.
    """

    name: str
    family: str
    bits: int
    size: int
    losses: Losses

    @property
    def group(self) -> str:
        """ "VB-LoRA", "LoRA" or "others"."""
        method = self.family.split(",")[0]
        return method if method in ("VB-LoRA", "LoRA") else "others"


@dataclass(frozen=True)
class Control:
    """Training with a part of an adapter left as it was drawn.

    Attributes:
        name: "choices frozen", say.
        losses: in float32.
        churn: share of sub-vectors that choose another set than at the start.
        usage: standard deviation over mean of how often each bank vector is chosen.
        sharing: of two layers' shares of the bank, on average.
        usage_by_chance, sharing_by_chance: 95% of random choices with the same weights.

    All but losses are means over runs; NaN where nothing was noted.
    """

    name: str
    losses: Losses
    churn: float
    usage: float
    usage_by_chance: tuple[float, float]
    sharing: float
    sharing_by_chance: tuple[float, float]


@dataclass(frozen=True)
class Change:
    """Another way to train one adapter, or another config of as many bytes.

    Attributes:
        name: "topk 4", say.
        size: bytes, in float32.
        apart: by how much its loss is higher than the curve's with the same seed, one number for
            each seed; none where training broke off.
    """

    name: str
    size: int
    apart: tuple[float, ...]


def curve(base: str = "smollm2-135m", bits: int = 8, file: Path = CURVE) -> list[Point]:
    """What `benchmarks/pareto.py` measured of a base's methods, by size."""
    points = [
        Point(row["name"], row["family"], int(row["bits"]), int(row["bytes"]), _losses(row))
        for row in _rows(file, base)
        if int(row["bits"]) == bits
    ]
    return sorted(points, key=lambda point: point.size)


def controls(base: str = "smollm2-135m", file: Path = CONTROLS) -> list[Control]:
    """Its controls, in the order in which it trains them."""
    return [
        Control(
            row["name"],
            _losses(row),
            float(row["churn"]),
            float(row["usage"]),
            (float(row["usage_low"]), float(row["usage_high"])),
            float(row["sharing"]),
            (float(row["sharing_low"]), float(row["sharing_high"])),
        )
        for row in _rows(file, base)
    ]


def changes(base: str = "smollm2-135m", file: Path = CHANGES) -> list[Change]:
    """What it tried beside the plain training of one adapter."""
    return [
        Change(row["name"], int(row["bytes"]), tuple(float(each) for each in row["apart"].split()))
        for row in _rows(file, base)
    ]


def noise(points: Iterable[Point]) -> float:
    """Standard deviation of a single run, pooled over all points with two seeds or more.

    NaN where there are none.
    """
    spreads = [p.losses.all for p in points if len(p.losses.all) > 1]
    if not spreads:
        return math.nan
    squares = sum((len(losses) - 1) * statistics.variance(losses) for losses in spreads)
    return float((squares / sum(len(losses) - 1 for losses in spreads)) ** 0.5)


def _rows(file: Path, base: str) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["base"] == base]


def _losses(row: dict[str, str]) -> Losses:
    searched = float(row["searched"]) if row["searched"] else None
    return Losses(searched, tuple(float(loss) for loss in row["losses"].split()))
