"""What `pareto.py run` left, as tables, plots and data.

results/pareto.md has all of it, results/pareto-BASE.png the plots. What the course shows goes to
curve.csv and controls.csv in the package, and a short table to README.md, between two marks.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pareto_plan import RUNGS, Done, Entry, Plan
from records import write_rows

from vblora_lab.course.curves import quality_at_each_size
from vblora_lab.course.measured import (
    CHANGES,
    CONTROLS,
    CURVE,
    Control,
    Losses,
    Point,
    changes,
    controls,
    curve,
    noise,
)
from vblora_lab.tuner.precision import PRECISIONS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- by benchmarks/pareto.py report: -->\n", "<!-- until here -->"
BUDGETS = (5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000)
README_BASE = "smollm2-135m"
BITS = dict(zip(PRECISIONS, (32, 16, 8), strict=True))
GROUPS = ("VB-LoRA", "LoRA", "others")
HEADS = (*GROUPS[:2], "other methods")
ALONE = "†"  # after a loss of the search's seed alone
ONE_ADAPTER = "all trained, one adapter"


def write(plans: Mapping[str, Plan], done: Done, folder: Path) -> None:
    """Write everything: into ``folder``, into the package, and the table of README.md."""
    parts = ["# Stored bytes against loss\n\nBy `benchmarks/pareto.py`, which says what is done.\n"]
    write_rows(CURVE, [row for plan in plans.values() for row in curve_rows(plan, done)])
    write_rows(CHANGES, [row for plan in plans.values() for row in change_rows(plan, done)])
    write_rows(CONTROLS, [row for plan in plans.values() for row in control_rows(plan, done)])
    for base, plan in plans.items():
        eight = curve(base)
        parts += [heading(plan, done)] if eight or controls(base) else []
        if not math.isnan(noise(eight)):  # a curve of single runs would say little
            parts += [curve_table(plan, done), best_table(eight), front_text(eight)]
            figure = quality_at_each_size(
                eight, f"{base} on {plan.setting.task}, numbers stored in 8 bits"
            )
            figure.savefig(folder / f"pareto-{base}.png", dpi=144)
        parts += [controls_table(plan, done, folder), changes_table(plan)]
    text = "\n".join(part for part in parts if part)
    (folder / "pareto.md").write_text(text, encoding="utf-8")
    readme = in_readme(README.read_text(encoding="utf-8"), curve(README_BASE))
    README.write_text(readme, encoding="utf-8")
    print(text)


def heading(plan: Plan, done: Done) -> str:
    setting = plan.setting
    runs = [run for entry in plan.entries for run in outcomes(plan, entry, done)]
    devices = ", ".join(sorted({run["device"] for run in runs if "device" in run}))
    return (
        f"## {setting.base}\n\n{setting.task}, {setting.steps} steps of {setting.batch_size}; "
        f"{devices}. Loss: nats per token on validation examples, mean ± standard deviation over "
        f"seeds 1 and up. Rates: the best of up to {RUNGS} on a ladder, with seed 0, whose loss "
        f"is therefore a little too good; of VB-LoRA's bank, its logits have ten times it. "
        f"{ALONE}: seed 0 alone, so far. (edge): no rate beyond it was tried.\n"
    )


def curve_rows(plan: Plan, done: Done) -> list[dict[str, Any]]:
    """A row for each point: a method of some size, in one precision."""
    return [
        {
            "base": plan.setting.base,
            "name": entry.name,
            "family": entry.family,
            "bits": bits,
            "bytes": size_of(entry, runs[0], precision),
            **losses,
        }
        for entry in plan.entries
        if entry.study == "curve" and (runs := outcomes(plan, entry, done))
        for precision, bits in BITS.items()
        if (losses := losses_of(plan, entry, done, precision))
    ]


def outcomes(plan: Plan, entry: Entry, done: Done) -> list[Mapping[str, Any]]:
    """Its final trials, and the one that chose its rate where there is no final one."""
    first = plan.first(entry, done)
    return plan.finals(entry, done) or ([first] if first and first["loss"]["float32"] else [])


def losses_of(plan: Plan, entry: Entry, done: Done, precision: str) -> dict[str, str]:
    """For the columns "searched" and "losses"; empty where nothing was trained to its end."""
    first = plan.first(entry, done)
    searched = first["loss"].get(precision) if first else None
    finals = [run["loss"].get(precision) for run in plan.finals(entry, done)]
    numbers = [f"{loss:.5f}" for loss in finals if loss is not None]
    if searched is None and not numbers:
        return {}
    return {"searched": "" if searched is None else f"{searched:.5f}", "losses": " ".join(numbers)}


def size_of(entry: Entry, run: Mapping[str, Any], precision: str) -> int:
    """Bytes that are stored; a bank that belongs to another task's adapter isn't."""
    parts = run["bytes"][precision]
    return int(parts["rest"] + (0 if "bank_of" in entry.change else parts["bank"]))


def control_rows(plan: Plan, done: Done) -> list[dict[str, Any]]:
    """A row for each control; what only tells how well two runs agree is none."""
    rows = []
    for entry in plan.entries:
        is_control = entry.study == "controls" and entry.name != ONE_ADAPTER
        runs = outcomes(plan, entry, done) if is_control else []
        if runs and (losses := losses_of(plan, entry, done, "float32")):
            chosen = [run["selection"] for run in runs if "selection" in run]
            row = {"base": plan.setting.base, "name": entry.name, **losses}
            row["churn"] = mean_of(each["churn"] for each in chosen)
            for what in ("usage", "sharing"):
                row[what] = mean_of(each[what] for each in chosen)
                for i, end in enumerate(("low", "high")):
                    row[f"{what}_{end}"] = mean_of(each["by_chance"][what][i] for each in chosen)
            rows.append(row)
    return rows


def mean_of(values: Iterable[float]) -> str:
    """Empty lists have no mean: "nan"."""
    numbers = list(values)
    return f"{statistics.mean(numbers):.4f}" if numbers else "nan"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def spread(values: Sequence[float | None], digits: int = 3, scale: float = 1.0) -> str:
    numbers = [scale * value for value in values if value is not None]
    if not numbers:
        return "–"
    mean = f"{statistics.mean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def signed(values: Sequence[float]) -> str:
    return ("+" if statistics.mean(values) > 0 else "") + spread(values)


def curve_table(plan: Plan, done: Done) -> str:
    by_name: dict[str, dict[int, Point]] = {}
    for bits in BITS.values():
        for point in curve(plan.setting.base, bits):
            by_name.setdefault(point.name, {})[bits] = point
    rows = []
    for name, of in sorted(by_name.items(), key=lambda each: each[1][32].size):
        entry = plan.by_name[name]
        finals = plan.finals(entry, done)
        losses = of[32].losses
        rows.append([
            name,
            rate_text(plan, entry, done),
            *(f"{of[bits].size:,}" if bits in of else "–" for bits in BITS.values()),
            "–" if losses.searched is None else f"{losses.searched:.3f}",
            spread(losses.others),
            spread(of[8].losses.others) if 8 in of else "–",
            spread([run.get("bleu") for run in finals], 1),
            spread([run.get("slot_error_rate") for run in finals], 1, 100),
            str(len(finals)),
        ])  # fmt: skip
    sizes = [f"bytes, {bits} bits" for bits in BITS.values()]
    head = ["", "rate", *sizes, "loss, seed 0", "loss", "loss, 8 bits", "BLEU", "slot errors, %"]
    return table([*head, "seeds"], rows)


def rate_text(plan: Plan, entry: Entry, done: Done) -> str:
    edge = " (edge)" if plan.is_at_edge(entry, done) else ""
    return f"{plan.best_rate(entry, done):g}{edge}"


def loss_text(losses: Losses) -> str:
    return spread(losses.others) if losses.others else f"{losses.mean:.3f}{ALONE}"


def best(points: Iterable[Point]) -> Point | None:
    return min(points, key=lambda point: point.losses.mean, default=None)


def best_table(points: Sequence[Point], budgets: Sequence[int] = BUDGETS) -> str:
    """The lowest loss within a budget, of VB-LoRA, LoRA and the others."""
    rows = []
    for budget in budgets:
        found = [
            best(p for p in points if p.size <= budget and p.group == group) for group in GROUPS
        ]
        rows.append([
            f"{budget:,}",
            *(f"{loss_text(p.losses)}: {p.name}, {p.size:,}" if p else "–" for p in found),
        ])  # fmt: skip
    return f"The best within so many bytes, in 8 bits:\n\n{table(['bytes', *HEADS], rows)}"


def front_text(points: Sequence[Point]) -> str:
    """Who has the lowest loss from which size on, and how far ahead of the other groups."""
    rows: list[list[str]] = []
    for point in sorted(points, key=lambda each: (each.size, each.losses.mean)):
        within = [p for p in points if p.size <= point.size]
        if best(within) is point:
            rival = best(p for p in within if p.group != point.group)
            lead = f"{rival.losses.mean - point.losses.mean:.3f} ({rival.name})" if rival else "–"
            rows.append([f"{point.size:,}", point.name, loss_text(point.losses), lead])
    head = ["from bytes", "lowest loss", "", "less than the best of another kind"]
    return (
        f"Who leads from which size on, in 8 bits.\n\n{table(head, rows)}\n{leaders_text(points)}"
    )


def leaders_text(points: Sequence[Point]) -> str:
    """The same in a few lines, where a lead that a seed could make is none."""
    told: list[str] = []
    leader: Point | None = None
    for point in sorted(points, key=lambda each: (each.size, each.losses.mean)):
        ahead = leader is None or leader.losses.mean - point.losses.mean > by_seed(points)
        if ahead and (leader is None or label(leader) != label(point)):
            alone = "" if point.losses.others else ALONE
            told.append(f"{label(point)}{alone} from {short(point.size)}")
        leader = point if ahead or leader is None else leader
    alone = f" {ALONE} is for losses of the seed that chose the learning rates, alone."
    alone = "" if all(point.losses.others for point in points) else alone
    return (
        f"Lowest loss in 8 bits: {', '.join(told)}. Against LoRA alone, VB-LoRA is ahead "
        f"{ranges_text(ahead_of_lora(points))}. Two runs that differ in their seed alone are "
        f"{by_seed(points):.3f} apart (root of the mean square over all methods): less counts as "
        f"level here.{alone}\n"
    )


def by_seed(points: Iterable[Point]) -> float:
    """How far two runs are apart that differ in their seed alone."""
    return noise(points) * math.sqrt(2)


def ahead_of_lora(points: Sequence[Point]) -> list[tuple[int, int | None]]:
    """Ranges of size in which the best VB-LoRA is ahead of the best LoRA, by more than a seed is.

    The end is the size from which LoRA is level; None where it never is.
    """
    ranges: list[tuple[int, int | None]] = []
    for size in sorted(point.size for point in points):
        ours, theirs = (
            best(p for p in points if p.size <= size and p.group == group) for group in GROUPS[:2]
        )
        gap = by_seed(points)
        ahead = ours and (not theirs or theirs.losses.mean > ours.losses.mean + gap)
        is_open = bool(ranges) and ranges[-1][1] is None
        if ahead and not is_open:
            ranges.append((size, None))
        elif is_open and not ahead:
            ranges[-1] = (ranges[-1][0], size)
    return ranges


def ranges_text(ranges: Sequence[tuple[int, int | None]]) -> str:
    """from 1.1 kB to 6.3 kB and from 11 kB"""
    return " and ".join(
        f"from {short(start)}" + (f" to {short(end)}" if end else "") for start, end in ranges
    )


def label(point: Point) -> str:
    """What counts as one leader: all of VB-LoRA, all of LoRA, any other method by its name."""
    return point.name if point.group == "others" else point.group


def short(size: int) -> str:
    """Two digits: 36 kB, 1.3 MB."""
    unit, name = (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"


def in_readme(text: str, points: Sequence[Point]) -> str:
    """README.md with what these points come to between its marks."""
    before, found, rest = text.partition(BEGIN)
    _, also_found, after = rest.partition(END)
    if not (found and also_found):
        raise ValueError(f"{README.name} has no {BEGIN.strip()!r} followed by {END!r}")
    budgets = [budget for budget in BUDGETS if budget >= 10_000]
    rows = best_table(points, budgets).partition("\n\n")[2]
    return f"{before}{BEGIN}{rows}\n{leaders_text(points)}{END}{after}"


def controls_table(plan: Plan, done: Done, folder: Path) -> str:
    found = controls(plan.setting.base)
    if not found:
        return ""
    rows = [
        [
            each.name,
            rate_text(plan, plan.by_name[each.name], done),
            "–" if each.losses.searched is None else f"{each.losses.searched:.3f}",
            spread(each.losses.others),
            str(len(each.losses.others)),
            *selection_cells(each),
        ]
        for each in found
    ]
    head = ["", "rate", "loss, seed 0", "loss", "seeds", "churn, %"]
    note = (
        "Controls. Churn: sub-vectors whose chosen set is another one after training. Usage: "
        "standard deviation over mean of how often each bank vector is chosen. Sharing: of two "
        "layers' shares of the bank, on average. By chance: 95% of random choices with the same "
        "weights.\n"
    )
    lines = table([*head, "usage (by chance)", "sharing (by chance)"], rows)
    return f"{note}\n{lines}{agreement_text(plan, done, folder)}"


def selection_cells(control: Control) -> list[str]:
    if math.isnan(control.churn):
        return ["–"] * 3
    (low, high), (least, most) = control.usage_by_chance, control.sharing_by_chance
    return [
        f"{control.churn:.1%}".rstrip("%"),
        f"{control.usage:.2f} ({low:.2f} to {high:.2f})",
        f"{control.sharing:.2f} ({least:.2f} to {most:.2f})",
    ]


def agreement_text(plan: Plan, done: Done, folder: Path) -> str:
    agreed = agreement(plan, done, folder)
    if not agreed:
        return ""
    return (
        f"\nRuns from one adapter on other orders of the examples: of the sub-vectors that changed "
        f"their choice in both of two runs, {agreed['same']:.1%} changed to the same one; "
        f"{agreed['chance']:.1%} would by chance. (Both began with the same logits, of which the "
        f"next largest are the likeliest to be chosen.)\n"
    )


def agreement(plan: Plan, done: Done, folder: Path) -> dict[str, float] | None:
    """How often two runs of one adapter come to the same new choice, and would by chance.

    From the selections that trials left beside the outcomes; where these are no longer there, from
    what an earlier report noted.
    """
    noted = folder / "pareto-agreement.json"
    known = json.loads(noted.read_text()) if noted.exists() else {}
    runs = plan.finals(plan.by_name[ONE_ADAPTER], done)
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


def change_rows(plan: Plan, done: Done) -> list[dict[str, Any]]:
    """A row for each change: how far its loss is from the curve's of the same seed."""
    rows = []
    for entry in plan.entries:
        runs = plan.finals(entry, done) if entry.study == "changes" else []
        if runs:
            like = plan.by_name[entry.like] if entry.like else changed(plan)
            theirs = {run["seed"]: run["loss"]["float32"] for run in plan.finals(like, done)}
            pairs = [(run["loss"]["float32"], theirs.get(run["seed"])) for run in runs]
            apart = [f"{a - b:.5f}" for a, b in pairs if a is not None and b is not None]
            size = next((size_of(entry, run, "float32") for run in runs if "bytes" in run), 0)
            rows.append({"base": plan.setting.base, "name": entry.name, "bytes": size,
                         "apart": " ".join(apart)})  # fmt: skip
    return rows


def changed(plan: Plan) -> Entry:
    """The entry of the curve that all changes change."""
    return next(plan.by_name[e.like] for e in plan.entries if e.study == "changes" and e.like)


def changes_table(plan: Plan) -> str:
    tried = changes(plan.setting.base)
    if not tried:
        return ""
    rows = [
        [
            change.name,
            f"{change.size:,}" if change.apart else "–",
            signed(change.apart) if change.apart else "training broke off",
            str(len(change.apart)),
        ]
        for change in tried
    ]
    head = ["", "bytes", "loss, less that of the curve with the same seed", "seeds"]
    return f"Changes to {changed(plan).name}, at its rates; other sizes at their best:\n\n" + table(
        head, rows
    )
