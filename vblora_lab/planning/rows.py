"""What widget and figure draw of a plan: bars that compare amounts, and modules as a tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from vblora_lab.planning.record import PlanRecord, Skipped, Target
from vblora_lab.tables import readable

Item = TypeVar("Item", bound="Target | Skipped")
NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


def grouped(items: Iterable[Item], like: Callable[[Item], tuple]) -> list[tuple[str, list[Item]]]:
    """Put together what differs in the layer number alone: ("layers.0-11.fc1", its modules)."""
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        groups.setdefault((NUMBER.sub("#", item.name, count=1), *like(item)), []).append(item)
    named = []
    for (pattern, *_), group in groups.items():
        numbers = [int(number) for member in group for number in NUMBER.findall(member.name)[:1]]
        named.append((pattern.replace("#", ranges(numbers), 1) if numbers else pattern, group))
    return named


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: [0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class Bar(NamedTuple):
    """An amount to compare with others."""

    label: str
    value: int
    text: str  # the value as it is read
    is_chosen: bool  # what the config gives; the others are there to compare


def parameter_bars(plan: PlanRecord) -> list[Bar]:
    """Parameters: trained by VB-LoRA and by LoRA, and what the base model has."""
    values = [
        ("VB-LoRA, trained", plan.trained_parameters, True),
        (f"LoRA r={plan.r}, trained", plan.lora_parameters, False),
        ("base model, frozen", plan.base_parameters, False),
    ]
    return [Bar(label, value, f"{value:,}", chosen) for label, value, chosen in values]


def byte_bars(plan: PlanRecord) -> list[Bar]:
    """Bytes of the stored adapter in each form, of a stored LoRA, and of the base weights."""
    only_topk = plan.save_only_topk_weights
    values = [
        ("stored, all logits", plan.full_bytes, not only_topk),
        ("stored, top-k only", plan.topk_bytes, only_topk),
        ("top-k in float16", plan.float16_bytes, False),
        ("top-k in 8 bits", plan.int8_bytes, False),
        (f"stored LoRA r={plan.r}", plan.lora_bytes, False),
        ("base weights", plan.memory.weights, False),
    ]
    return [Bar(label, value, readable(value), chosen) for label, value, chosen in values]


def against_lora(ours: int, lora: int) -> str:
    """How an amount compares with LoRA's: "1.4 times LoRA", "1/27 of LoRA"."""
    if not ours or not lora:
        return ""
    ratio = ours / lora
    if round(ratio, 1) == 1:
        return "about as LoRA"
    return f"{_three(ratio)} times LoRA" if ratio > 1 else f"1/{_three(1 / ratio)} of LoRA"


def _three(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"


ADAPTED, MISFIT, SAVED, LEFT, MIXED, ABSENT = "A", "X", "S", "-", "~", " "
"""Marks of a module: adapted, named but can't be adapted, trained whole, left as it is, several of
these (where modules share a mark), not there in this layer."""


class ModuleRow(NamedTuple):
    """A line of the module tree: a module with a weight matrix in all layers, or what holds some.

    Attributes:
        depth: of the line in the tree, from 0.
        label: the part of the name below the parent line; "layers.#" where # counts the layers.
        name: the whole name, with # for the layer and * for further numbers; "" for a parent line.
        sizes: "768 -> 768" of an adapted module; else its class.
        marks: one for each layer, or one alone for a module outside of layers.
        note: what is done with it, and why.
    """

    depth: int
    label: str
    name: str
    sizes: str
    marks: str
    note: str


def module_rows(plan: PlanRecord, order: Iterable[str] = ()) -> list[ModuleRow]:
    """All modules with a weight matrix as a tree, those that differ in their layer as one line.

    Args:
        order: names of modules; lines come in the order in which they first appear here.
    """
    place = {name: position for position, name in enumerate(order)}
    unfit = {name for problem in plan.problems for name in problem.modules}
    states: dict[str, tuple[str, str, str]] = {}  # mark, note, sizes
    for target in plan.targets:
        fits = target.tiles_A is not None and target.name not in unfit
        sizes = f"{target.in_features} → {target.out_features}"
        states[target.name] = (ADAPTED, "adapted", sizes) if fits else (MISFIT, "no fit", sizes)
    for skipped in plan.skipped:
        saved = skipped.reason.startswith("trained whole")
        mark = MISFIT if skipped.name in unfit else SAVED if saved else LEFT
        states[skipped.name] = mark, skipped.reason, skipped.kind

    lines: dict[str, dict[int, list[tuple[str, str, str]]]] = {}
    for name in sorted(states, key=lambda name: (place.get(name, len(place)), name)):
        first, *_ = [*NUMBER.findall(name), "-1"]
        pattern = NUMBER.sub("*", NUMBER.sub("#", name, count=1))
        lines.setdefault(pattern, {}).setdefault(int(first), []).append(states[name])
    layers = 1 + max((number for line in lines.values() for number in line), default=-1)
    tree: dict[str, Any] = {}
    for pattern, line in lines.items():
        branch = tree
        for part in pattern.split("."):
            branch = branch.setdefault(part, {})
        branch[""] = pattern, line  # no part of a name is empty
    return list(_tree_rows(tree, layers, 0))


def _tree_rows(tree: dict[str, Any], layers: int, depth: int) -> Iterator[ModuleRow]:
    for part, branch in tree.items():
        if part == "":
            continue
        label = part
        while "" not in branch and len(branch) == 1 and "#" not in label:
            (below, branch), *_ = branch.items()
            label += f".{below}"
        if "" in branch:
            pattern, line = branch[""]
            yield _module_row(depth, label, pattern, line, layers)
        else:
            yield ModuleRow(depth, label, "", "", "", "")
        yield from _tree_rows(branch, layers, depth + 1)


def _module_row(
    depth: int,
    label: str,
    pattern: str,
    line: dict[int, list[tuple[str, str, str]]],
    layers: int,
) -> ModuleRow:
    numbers = [-1] if -1 in line else list(range(layers))
    marks = ""
    reasons: dict[str, set[int]] = {}
    for number in numbers:
        states = line.get(number, [])
        kinds = {mark for mark, _, _ in states}
        marks += ABSENT if not kinds else kinds.pop() if len(kinds) == 1 else MIXED
        for _, note, _ in states:
            reasons.setdefault(note, set()).add(number)
    if len(reasons) == 1:
        note = next(iter(reasons))
    else:
        note = "; ".join(f"{note}: {ranges(where)}" for note, where in reasons.items())
    sizes = list(dict.fromkeys(size for states in line.values() for _, _, size in states))
    numeric = [size for size in sizes if "→" in size]
    shown = numeric or sizes
    return ModuleRow(
        depth, label, pattern, shown[0] if len(shown) == 1 else "sizes vary", marks, note
    )
