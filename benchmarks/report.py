"""The table and plots of what `benchmarks/speed.py` measured: results/speed.md and results/*.png.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from report_large import large_parts, methods_of

RESULTS = Path(__file__).parent / "results"
OURS, CAPTURED, EAGER = "vblora_lab", "vblora_lab, captured", "vblora_lab, eager"
FROZEN, LORA, STOCK = "frozen base", "PEFT LoRA", "PEFT VB-LoRA"
# Okabe and Ito's colours, and a marker each, so that colour isn't needed to tell them apart.
LOOKS = {
    FROZEN: ("#555555", "s"),
    LORA: ("#E69F00", "^"),
    STOCK: ("#D55E00", "v"),
    OURS: ("#0072B2", "o"),
    CAPTURED: ("#009E73", "D"),
}
NAMES = {"layers": "adapted layers", "num_vectors": "bank vectors", "r": "rank r"}

Record = dict[str, Any]


def of(records: list[Record], section: str) -> list[Record]:
    return [record for record in records if record["section"] == section]


# --- targets: what this project set out to reach

Target = tuple[str, str, str, bool]  # what, the target, what was measured, whether it was met


def at_least(what: str, asked: float, measured: float) -> Target:
    return what, f"at least {asked}x", f"{measured:.2f}x", measured >= asked


def at_most(what: str, asked: float, measured: float, unit: str = "x") -> Target:
    return what, f"at most {asked}{unit}", f"{measured:.2f}{unit}", measured <= asked


def gpu_targets(records: list[Record]) -> Iterator[Target]:
    against_stock = {
        "opt-125m-8x512-qv": 2.0,
        "opt-125m-8x512-all": 3.5,
        "opt-1.3b-8x512-qv": 2.0,
        "opt-1.3b-8x512-all": 2.8,
    }
    for record in of(records, "training"):
        row, ms, gib = record["row"], record["milliseconds"], record["peak_gib"]
        if row in against_stock:
            asked = against_stock[row]
            yield at_least(f"{row}: step against PEFT VB-LoRA", asked, ms[STOCK] / ms[OURS])
            most = 1.3 if record["targets"] == "qv" else 1.6
            yield at_most(f"{row}: step against the frozen base", most, ms[OURS] / ms[FROZEN])
        else:
            gain = ms[STOCK] / ms[CAPTURED]
            yield at_least(f"{row}: captured step against PEFT VB-LoRA", 8, gain)
        yield at_most(f"{row}: step against PEFT LoRA", 1.0, ms[OURS] / ms[LORA])
        if row == "opt-1.3b-8x512-all":
            # 11.5 GiB where the frozen base takes 9.6: what matters is what is added.
            yield at_most(
                f"{row}: memory above the frozen base", 1.9, gib[OURS] - gib[FROZEN], " GiB"
            )
    for record in of(records, "compiled"):
        row, ms = record["row"], record["milliseconds"]
        others = {"PEFT LoRA's": (1.15, LORA), "the base's": (1.5, FROZEN), "eager": (1.0, EAGER)}
        for name, (most, other) in others.items():
            if ms[OURS] and ms[other]:  # neither was refused by the compiler
                yield at_most(f"{row}: compiled step against {name}", most, ms[OURS] / ms[other])
    for record in of(records, "generation"):
        ms = record["milliseconds"]
        yield at_most(f"{record['row']}: token against the frozen base", 1.1, ms[OURS] / ms[FROZEN])
    for record in of(records, "admixture")[-1:]:
        ratio = record["milliseconds"]["kernels, captured"] / record["floor_milliseconds"]
        yield at_most(f"admixture of {record['row']}: time against its traffic", 2.0, ratio)
    yield from common_targets(records)


def cpu_targets(records: list[Record]) -> Iterator[Target]:
    for record in of(records, "training"):
        ms = record["milliseconds"]
        share = (ms[OURS] - ms[FROZEN]) / (ms[STOCK] - ms[FROZEN])
        yield at_most(f"{record['row']}: overhead against PEFT VB-LoRA's", 0.4, share)
    yield from common_targets(records)


def common_targets(records: list[Record]) -> Iterator[Target]:
    for record in of(records, "snapshots"):
        ms = record["milliseconds"]
        added = 100 * (ms["step and snapshot"] / ms["step"] - 1)
        yield at_most(f"{record['row']}: a snapshot each step adds", 2.0, added, "%")
    for record in of(records, "injection"):
        ms = record["milliseconds"]
        ratio = ms["inject"] / ms["create the parameters"]
        yield at_most("13B-size adapter: injection against creating its parameters", 1.5, ratio)
        for what in ("save top-k", "load top-k"):
            yield at_most(f"13B-size adapter: {what}", 2.0, ms[what] / 1e3, " s")


# --- the page


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def timings(records: list[Record], unit: str) -> str:
    methods = methods_of(records)
    rows = []
    for record in records:
        times = record["milliseconds"]
        rows.append([record["row"], *(cell(m in times, times.get(m)) for m in methods)])
    return table([unit, *methods], rows)


def cell(asked: bool, value: float | None) -> str:
    """A number; empty if there was nothing to measure, a dash if it didn't fit."""
    if value is None:
        return "–" if asked else ""
    return f"{value:.2f}"


def page(about: dict[str, str], records: list[Record], kind: str) -> str:
    targets = list((gpu_targets if kind == "cuda" else cpu_targets)(records))
    packages = ("torch", "transformers", "peft", "bitsandbytes", "liger_kernel")
    versions = ", ".join(f"{name} {about[name]}" for name in packages if name in about)
    note = f" ({about['note']})" if "note" in about else ""
    parts = [
        f"## {about['device']}",
        f"{versions}, Python {about['python']}, {about['date']}, `{about['command']}`{note}",
        "### Targets",
        table(
            ["", "asked", "measured", ""],
            [[*target[:3], "met" if target[3] else "**missed**"] for target in targets],
        ),
    ]
    parts += why_missed(records)
    units = {
        "training": "milliseconds per training step",
        "compiled": "milliseconds per training step, torch.compile",
        "large": "milliseconds per training step with gradient checkpointing, bf16",
        "mixed": "milliseconds per mixed batch",
        "checkpointing": "milliseconds per training step with gradient checkpointing",
        "generation": "milliseconds per token",
        "admixture": "milliseconds, forward and backward",
        "snapshots": "milliseconds",
        "injection": "milliseconds",
    }
    for section, unit in units.items():
        if found := of(records, section):
            parts += [f"### {section.capitalize()}", timings(found, unit)]
        if section == "training" and kind == "cuda":
            memory = [r | {"milliseconds": r["peak_gib"]} for r in found]
            parts.append(timings(memory, "GiB at the peak"))
        if section == "large" and found:
            parts += large_parts(found, about["device"], table, timings)
    parts += profile(records) + waits(records)
    if of(records, "growth"):
        parts += ["### Growth", f"![time and memory of a step](growth-{kind}.png)"]
    if kind == "cuda" and of(records, "admixture"):
        parts.append(f"![bandwidth of the admixture](roofline-{kind}.png)")
    return "\n\n".join(parts)


def why_missed(records: list[Record]) -> list[str]:
    """What a step's time goes to, from the profile, so that a missed target says why."""
    work = {(r["row"], r["method"]): r for r in of(records, "profile") if "kernels" in r}
    lines = []
    for record in of(records, "training"):
        row, ms = record["row"], record["milliseconds"]
        if (row, OURS) not in work:
            continue
        mine, base = work[row, OURS], work[row, FROZEN]
        lines.append(
            f"- {row}: the device is at work in {mine['device_milliseconds']:.1f} of our "
            f"{ms[OURS]:.1f} ms ({base['device_milliseconds']:.1f} of the frozen base's "
            f"{ms[FROZEN]:.1f}); the rest is Python launching {mine['kernels']} kernels "
            f"(the base {base['kernels']}), which a captured step does at once. A step that cost "
            f"no more than the base's would be {ms[STOCK] / ms[FROZEN]:.2f}x PEFT VB-LoRA's."
        )
    return (
        ["Where the time goes, and how much there is to gain:", "\n".join(lines)] if lines else []
    )


def profile(records: list[Record]) -> list[str]:
    found = of(records, "profile")
    if not found:
        return []
    if "kernels" in found[0]:
        rows = [
            [f"{r['row']}, {r['method']}", str(r["kernels"]), f"{r['device_milliseconds']:.2f}"]
            for r in found
        ]
        header = ["one step", "kernels", "milliseconds in which the device is at work"]
    else:
        rows = [
            [f"{r['row']}, {r['method']}", ", ".join(f"{k} {v}" for k, v in times.items())]
            for r in found
            for times in [r["cpu_milliseconds"]]
        ]
        header = ["one step", "operators and their own milliseconds, the longest first"]
    return ["### Profile", table(header, rows)]


def waits(records: list[Record]) -> list[str]:
    found = of(records, "synchronisation")
    if not found:
        return []
    rows = [
        [record["row"], method, ", ".join(f"{n} at {p}" for p, n in places.items()) or "none"]
        for record in found
        for method, places in record["waits"].items()
    ]
    return ["### Waits for the device in a step", table(["", "method", "where"], rows)]


# --- plots


def plot_growth(records: list[Record], device: str, path: Path) -> None:
    """One column per field that grows: time of a step above, memory below if there is any.

    Against the frozen base of the same row, so that a host that is slower at times doesn't show.
    """
    fields = list(dict.fromkeys(record["field"] for record in records))
    panels: list[tuple[str, str, Any]] = [
        ("milliseconds", "step time / frozen base's", lambda value, base: value / base)
    ]
    if records[0]["peak_gib"]:
        panels.append(
            ("peak_gib", "MiB above the frozen base", lambda value, base: 1024 * (value - base))
        )
    figure, axes = plt.subplots(
        len(panels),
        len(fields),
        figsize=(11, 3.2 * len(panels) + 0.6),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for line, (what, label, against) in zip(axes, panels, strict=True):
        for axis, field in zip(line, fields, strict=True):
            points = [record for record in records if record["field"] == field]
            draw(axis, points, what, against)
            axis.set_xlabel(NAMES[field])
        line[0].set_ylabel(label)
        line[0].set_ylim(bottom=0)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"{records[0]['row'].split(',')[0]}, {device}", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw(axis: Any, points: list[Record], what: str, against: Any) -> None:
    x = [point["value"] for point in points]
    for method in points[0][what]:
        color, marker = LOOKS[method]
        values = [against(point[what][method], point[what][FROZEN]) for point in points]
        axis.plot(x, values, color=color, marker=marker, label=method, markersize=5)
    if points[0]["field"] != "layers":
        axis.set_xscale("log", base=2)
    axis.set_xticks(x, [str(value) for value in x])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def plot_roofline(records: list[Record], device: str, path: Path) -> None:
    """Bytes of logits read and of gradient written per second, against the number of logits."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    looks = {
        "kernels, captured": ("#009E73", "D"),
        "kernels": ("#0072B2", "o"),
        "kernels, deterministic": ("#56B4E9", "s"),
        "eager, pooled": ("#E69F00", "^"),
        "eager, layer by layer": ("#D55E00", "v"),
    }
    mega = [record["logit_bytes"] / 1e6 for record in records]
    for method, (color, marker) in looks.items():
        speeds = [
            2 * record["logit_bytes"] / record["milliseconds"][method] / 1e6 for record in records
        ]
        axis.plot(mega, speeds, color=color, marker=marker, label=method)
    copy = max(record["copy_gb_per_s"] for record in records)
    axis.axhline(copy, color="#555555", linestyle="--", label=f"copying: {copy:.0f} GB/s")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="logits of the model (MB)",
        ylabel="GB/s of logits read and gradients written",
        title=f"Admixture, forward and backward, {device}",
    )
    axis.set_xticks(mega, [f"{size:.0f}" for size in mega], minor=False)
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    pages = ["# Speed", "Written by `python benchmarks/report.py` from what `speed.py` measured."]
    for kind in ("cuda", "cpu"):
        path = RESULTS / f"speed-{kind}.json"
        if not path.exists():
            continue
        data = json.loads(path.read_text())
        about, records = data["about"], data["records"]
        pages.append(page(about, records, kind))
        if found := of(records, "growth"):
            plot_growth(found, about["device"], RESULTS / f"growth-{kind}.png")
        if kind == "cuda" and (found := of(records, "admixture")):
            plot_roofline(found, about["device"], RESULTS / f"roofline-{kind}.png")
    (RESULTS / "speed.md").write_text("\n\n".join(pages) + "\n")


if __name__ == "__main__":
    main()
