"""Tables and plots of what `pareto.py run` left: results/pareto.md and pareto-BASE.png."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pareto_plan import RUNGS, Done, Entry, Plan
from pareto_trial import PRECISIONS

from vblora_lab.plots.style import FAINT, INK, RULE, STYLES, empty_figure

BUDGETS = (5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000)
BITS = {"float32": "32 bits", "float16": "16 bits", "int8": "8 bits"}
OTHERS = "other methods"
LINES = ("VB-LoRA", "VB-LoRA, q and v", "LoRA", "LoRA, q and v")


class Point(NamedTuple):
    """A method of one size in one precision: bytes, and its loss with each seed."""

    entry: Entry
    precision: str
    size: int
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        return statistics.mean(self.losses)

    @property
    def deviation(self) -> float:
        """Standard deviation of single runs; 0 for one run."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else 0.0

    @property
    def group(self) -> str:
        return self.entry.kind if self.entry.kind in ("VB-LoRA", "LoRA") else OTHERS


def points(plan: Plan, done: Done) -> list[Point]:
    """All that the curve has so far, from final trials alone."""
    found = []
    for entry in plan.entries:
        runs = plan.finals(entry, done) if entry.study == "curve" else []
        for precision in PRECISIONS:
            losses = [run["loss"][precision] for run in runs]
            if losses and None not in losses:
                size = size_of(entry, runs[0], precision)
                found.append(Point(entry, precision, size, tuple(losses)))
    return found


def size_of(entry: Entry, run: Mapping[str, Any], precision: str) -> int:
    """Bytes that are stored; a bank that belongs to another task's adapter isn't."""
    parts = run["bytes"][precision]
    return int(parts["rest"] + (0 if "bank_of" in entry.change else parts["bank"]))


def write(plans: Mapping[str, Plan], done: Done, folder: Path) -> None:
    parts = ["# Stored bytes against loss\n\nBy `benchmarks/pareto.py`, which says what is done.\n"]
    for base, plan in plans.items():
        curve = points(plan, done)
        if not curve:
            continue
        setting = plan.setting
        finals = [run for entry in plan.entries for run in plan.finals(entry, done)]
        devices = ", ".join(sorted({run["device"] for run in finals}))
        parts.append(
            f"## {base}\n\n{setting.task}, {setting.steps} steps of {setting.batch_size}; "
            f"{devices}. Loss: nats per token, mean ± standard deviation over seeds. Rates: the "
            f"best of up to {RUNGS} on a ladder; of VB-LoRA's bank, its logits have ten times it.\n"
        )
        parts += [curve_table(plan, done, curve), best_table(curve)]
        parts += [controls_table(plan, done, folder), changes_table(plan, done)]
        draw(base, curve, folder / f"pareto-{base}.png")
    (folder / "pareto.md").write_text("\n".join(parts), encoding="utf-8")
    print("\n".join(parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def spread(values: Sequence[float | None], digits: int = 3, scale: float = 1.0) -> str:
    numbers = [scale * value for value in values if value is not None]
    if not numbers:
        return "–"
    mean = f"{statistics.mean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def curve_table(plan: Plan, done: Done, curve: Sequence[Point]) -> str:
    by_entry: dict[str, dict[str, Point]] = {}
    for point in curve:
        by_entry.setdefault(point.entry.name, {})[point.precision] = point
    rows = []
    for name, of in sorted(by_entry.items(), key=lambda each: each[1]["float32"].size):
        entry = of["float32"].entry
        runs = plan.finals(entry, done)
        edge = " (edge)" if plan.is_at_edge(entry, done) else ""
        texts = [
            spread([run.get(measure) for run in runs], 1, scale)
            for measure, scale in (("bleu", 1), ("slot_error_rate", 100))
        ]
        cells = [
            f"{each.size:,}: {spread(each.losses)}"
            for each in (of[precision] for precision in PRECISIONS if precision in of)
        ]
        cells += ["–"] * (len(PRECISIONS) - len(cells))
        rows.append([name, f"{plan.rate(entry, done):g}{edge}", *cells, *texts, str(len(runs))])
    head = ["", "rate", *(f"bytes and loss, {BITS[p]}" for p in PRECISIONS)]
    return table([*head, "BLEU", "slot errors, %", "seeds"], rows)


def best_table(curve: Sequence[Point]) -> str:
    """The lowest loss within a budget, of VB-LoRA, LoRA and the others, each in any precision."""
    rows = []
    for budget in BUDGETS:
        cells = []
        for group in ("VB-LoRA", "LoRA", OTHERS):
            fitting = [p for p in curve if p.size <= budget and p.group == group]
            best = min(fitting, key=lambda p: p.loss, default=None)
            cells.append(
                f"{spread(best.losses)} ({best.entry.name}, {BITS[best.precision]}, {best.size:,})"
                if best
                else "–"
            )
        rows.append([f"{budget:,}", *cells])
    return "The best within so many bytes:\n\n" + table(["bytes", "VB-LoRA", "LoRA", OTHERS], rows)


def controls_table(plan: Plan, done: Done, folder: Path) -> str:
    rows = []
    agreed = agreement(plan, done, folder)
    for entry in plan.entries:
        runs = plan.finals(entry, done) if entry.study == "controls" else []
        if runs:
            chosen = [run["selection"] for run in runs]
            rows.append([
                entry.name,
                f"{plan.rate(entry, done):g}",
                spread([run["loss"]["float32"] for run in runs]),
                spread([each["churn"] for each in chosen], 1, 100),
                *(
                    f"{spread([each[what] for each in chosen], 2)} ({band(chosen, what)})"
                    for what in ("usage", "sharing")
                ),
                str(len(runs)),
            ])  # fmt: skip
    if not rows:
        return ""
    head = ["", "rate", "loss", "churn, %", "usage (by chance)", "sharing (by chance)", "seeds"]
    note = (
        "Controls. Churn: sub-vectors whose chosen set is another one after training. Usage: "
        "standard deviation over mean of how often each bank vector is chosen. Sharing: of two "
        "layers' shares of the bank, on average. By chance: 95% of random choices with the same "
        "weights.\n"
    )
    tail = (
        f"\nRuns from one adapter on other orders of the examples: of the sub-vectors that changed "
        f"their choice in both of two runs, {agreed['same']:.1%} changed to the same one; "
        f"{agreed['chance']:.1%} would by chance.\n"
        if agreed
        else ""
    )
    return f"{note}\n{table(head, rows)}{tail}"


def band(chosen: Sequence[Mapping[str, Any]], what: str) -> str:
    low, high = np.mean([each["by_chance"][what] for each in chosen], axis=0)
    return f"{low:.2f} to {high:.2f}"


def agreement(plan: Plan, done: Done, folder: Path) -> dict[str, float] | None:
    """How often two runs of one adapter come to the same new choice, and would by chance.

    From the selections that trials left beside the outcomes; where these are no longer there, from
    what an earlier report noted.
    """
    noted = folder / "pareto-agreement.json"
    known = json.loads(noted.read_text()) if noted.exists() else {}
    runs = plan.finals(plan.by_name["all trained, one adapter"], done)
    files = [folder / "selections" / f"{run['key']}.npz" for run in runs]
    read = [np.load(file) for file in files if file.exists()]
    same, chance = [], []
    rng = np.random.default_rng(0)
    for a, b in itertools.combinations(read, 2):
        moved = (a["first"] != a["last"]).any(1) & (b["first"] != b["last"]).any(1)
        if moved.any():
            mine, theirs = a["last"][moved], b["last"][moved]
            same.append((mine == theirs).all(1).mean())
            chance.append((mine == rng.permutation(theirs)).all(1).mean())
    if same:
        known[plan.setting.base] = {"same": float(np.mean(same)), "chance": float(np.mean(chance))}
        noted.write_text(json.dumps(known, indent=1) + "\n")
    return known.get(plan.setting.base)


def changes_table(plan: Plan, done: Done) -> str:
    rows = []
    main = next((entry.like for entry in plan.entries if entry.study == "changes"), "")
    for entry in plan.entries:
        runs = plan.finals(entry, done) if entry.study == "changes" else []
        if runs:
            like = plan.by_name[entry.like or main]
            theirs = {run["seed"]: run["loss"]["float32"] for run in plan.finals(like, done)}
            pairs = [(run["loss"]["float32"], theirs.get(run["seed"])) for run in runs]
            apart = [a - b for a, b in pairs if a is not None and b is not None]
            rows.append([
                entry.name,
                f"{size_of(entry, runs[0], 'float32'):,}" if "bytes" in runs[0] else "–",
                spread([a for a, _ in pairs]),
                f"{statistics.mean(apart):+.3f}" if apart else "–",
                str(len(runs)),
            ])  # fmt: skip
    if not rows:
        return ""
    head = ["", "bytes", "loss", "less that of the curve, same seeds", "seeds"]
    return f"Changes to {main}, at its rates; other sizes at their best:\n\n" + table(head, rows)


def draw(base: str, curve: Sequence[Point], file: Path) -> None:
    figure, axes = empty_figure(9.0, 5.4)
    families = [
        *LINES,
        *dict.fromkeys(p.entry.family for p in curve if p.entry.family not in LINES),
    ]
    styles = itertools.cycle(STYLES)
    marks = itertools.cycle("oDs^vP*Xhd<>")
    for family in families:
        mine = [p for p in curve if p.entry.family == family]
        if not mine:
            continue
        joined = family in LINES
        colour, _, _ = next(styles) if joined else (FAINT, "-", "")
        _draw_family(axes, family, mine, colour if joined else INK, next(marks), joined)
    axes.set(
        xscale="log",
        xlabel="stored bytes (log scale); filled: 32 bits, hollow: 8 bits",
        ylabel="validation loss (nats per token)",
    )
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(_decimal))
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_title(f"Stored bytes against loss: {base}", loc="left", color=INK)
    low = min(p.loss for p in curve)
    most = [p.loss for p in curve if p.entry.kind in ("VB-LoRA", "LoRA")]
    axes.set_ylim(low - 0.02, max(most) + 0.06)
    axes.legend(fontsize=8.5, labelcolor=INK, edgecolor="none", framealpha=1.0, ncols=2)
    figure.savefig(file, dpi=144)


def _draw_family(
    axes: Axes, family: str, mine: Sequence[Point], colour: Any, mark: str, joined: bool
) -> None:
    for precision, face, line in (("float32", colour, "-"), ("int8", "white", ":")):
        row = sorted((p for p in mine if p.precision == precision), key=lambda p: p.size)
        axes.errorbar(
            [p.size for p in row],
            [p.loss for p in row],
            [p.deviation for p in row],
            color=colour,
            marker=mark,
            markersize=6,
            markerfacecolor=face,
            linestyle=line if joined else "none",
            linewidth=1.3,
            capsize=2.5,
            elinewidth=1.0,
            label=family if precision == "float32" else None,
            zorder=3,
        )


def _decimal(size: float, _: Any) -> str:
    for unit, name in ((1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size:g} B"
