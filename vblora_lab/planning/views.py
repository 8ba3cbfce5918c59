"""How a plan is shown: as text for terminals, as one HTML table for notebooks. Pure text-making."""

from __future__ import annotations

import dataclasses
import enum
import html
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from vblora_lab.planning.record import PlanRecord, Skipped, Target
    from vblora_lab.tuner.config import VBLoRAConfig

Item = TypeVar("Item", bound="Target | Skipped")
Rows = list[tuple[str, ...]]

SIZE_SIGN = re.compile(r"(?<=\d)x(?=\d+$)")
NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
MEMORY_NOTE = (
    "Weights in their dtype, adapter, one gradient and two AdamW numbers per trained parameter; "
    "activations come on top."
)
ACTIVATIONS_NOTE = (
    "Weights in their dtype, adapter, one gradient and two AdamW numbers per trained parameter, "
    "and what a pass keeps for its backward pass, without autocast or gradient checkpointing; what "
    "single operations take in passing comes on top."
)
INCOMPLETE_NOTE = "It doesn't fit as it is: sizes count only the modules that can be cut."


def as_text(plan: PlanRecord) -> str:
    """The plan in lines of at most 100 characters, as far as the names allow."""
    lines = [f"{heading(plan)}: {'fits' if plan.fits else 'does NOT fit'}", settings(plan)]
    for problem in plan.problems:
        lines += ["", *_wrapped(f"! {problem.message}")]
        if problem.suggestion is not None:
            lines += _wrapped(f"  -> {problem.field}={problem.suggestion!r}")
    lines += ["", adapted(plan)]
    lines += _aligned([TARGET_HEAD, *target_rows(plan)]) if plan.targets else []
    if plan.skipped:
        lines += ["", f"Left as they are: {_count(len(plan.skipped), 'module')}"]
        lines += _aligned(skipped_rows(plan), right=False)
    lines += ["", *_aligned([("", "VB-LoRA", f"LoRA r={plan.r}"), *size_rows(plan)])]
    lines += ["", *_aligned(memory_rows(plan)), *_wrapped(memory_note(plan), "  ")]
    lines += [] if plan.fits else ["", INCOMPLETE_NOTE]
    return "\n".join(lines)


def as_html(plan: PlanRecord) -> str:
    """The plan as a self-contained block, in the page's own colours."""
    verdict = "fits" if plan.fits else "<b>does not fit</b>"
    parts = [f"<div><b>{_escaped(heading(plan))}</b>: {verdict}</div>"]
    parts.append(f"<div>{_escaped(settings(plan))}</div>")
    for problem in plan.problems:
        text = _escaped(problem.message)
        if problem.suggestion is not None:
            text += f"<br>→ <code>{_escaped(f'{problem.field}={problem.suggestion!r}')}</code>"
        # A bar of one colour that stands out on white and on black.
        parts.append(f'<div style="border-left:3px solid #d9822b;padding:2px 8px">{text}</div>')
    if plan.targets:
        parts.append(_table(adapted(plan), TARGET_HEAD, target_rows(plan)))
    if plan.skipped:
        title = f"Left as they are: {_count(len(plan.skipped), 'module')}"
        parts.append(_table(title, ("module", "why"), skipped_rows(plan), text_columns=2))
    head = ("", "VB-LoRA", f"LoRA r={plan.r}")
    parts.append(_table("Sizes", head, size_rows(plan)))
    parts.append(_table("Training memory", ("", "bytes", "in short"), memory_rows(plan)))
    note = memory_note(plan) if plan.fits else f"{memory_note(plan)} {INCOMPLETE_NOTE}"
    parts.append(f'<div style="margin-top:1em;opacity:.75">{_escaped(note)}</div>')
    return f'<div style="max-width:60em;line-height:1.5">{"".join(parts)}</div>'


# --- what is said, whatever the form


def heading(plan: PlanRecord) -> str:
    return f"VB-LoRA plan for {plan.model}"


def settings(plan: PlanRecord) -> str:
    return (
        f"r={plan.r}, topk={plan.topk}, one bank of {plan.num_vectors} vectors of length "
        f"{plan.vector_length}"
    )


def adapted(plan: PlanRecord) -> str:
    return f"Adapted: {_count(len(plan.targets), 'module')} (tiles of one, counts of all in a line)"


TARGET_HEAD = ("module", "in -> out", "tiles of A", "of B", "sub-vectors", "logits")


def target_rows(plan: PlanRecord) -> Rows:
    """One row for modules that differ in their layer alone; counts are sums over the layers."""
    rows: Rows = []
    for name, group in groups_by_size(plan):
        first = group[0]
        rows.append(
            (
                name,
                f"{first.in_features} -> {first.out_features}",
                "x".join(map(str, first.tiles_A)) if first.tiles_A else "no fit",
                "x".join(map(str, first.tiles_B)) if first.tiles_B else "-",
                f"{sum(target.sub_vectors for target in group):,}",
                f"{sum(target.logits for target in group):,}",
            )
        )
    return rows


def groups_by_size(plan: PlanRecord) -> list[tuple[str, list[Target]]]:
    """The targets, with those together that differ in their layer alone."""
    return grouped(plan.targets, lambda t: (t.kind, t.in_features, t.out_features))


def skipped_rows(plan: PlanRecord) -> Rows:
    """One row, name and reason, for modules that differ in their layer alone."""
    groups = grouped(plan.skipped, lambda skipped: (skipped.kind, skipped.reason))
    return [(name, _why(group[0])) for name, group in groups]


def _why(skipped: Skipped) -> str:
    is_kind = skipped.reason.startswith("kind ")
    return f"{skipped.kind} {skipped.reason.removeprefix('kind ')}" if is_kind else skipped.reason


def size_rows(plan: PlanRecord) -> Rows:
    lora = plan.lora_parameters - plan.other_parameters
    rows: Rows = [
        ("trained parameters", f"{plan.trained_parameters:,}", f"{plan.lora_parameters:,}"),
        ("  vector bank", f"{plan.bank_parameters:,}", ""),
        ("  logits, or LoRA's A and B", f"{plan.logits_parameters:,}", f"{lora:,}"),
    ]
    if plan.other_parameters:
        other = f"{plan.other_parameters:,}"
        rows.append(("  biases and whole modules", other, other))
    mark = {plan.save_only_topk_weights: "  (chosen)"}
    rows += [
        (
            "stored, all logits" + mark.get(False, ""),
            in_bytes(plan.full_bytes),
            in_bytes(plan.lora_bytes),
        ),
        ("stored, top-k only" + mark.get(True, ""), in_bytes(plan.topk_bytes), ""),
    ]
    return rows


def memory_rows(plan: PlanRecord) -> Rows:
    memory = plan.memory
    rows = [
        (f"base weights ({plan.base_parameters:,} parameters)", memory.weights),
        ("adapter", memory.adapter),
        ("gradients", memory.gradients),
        ("AdamW", memory.optimizer),
    ]
    if memory.batch and memory.activations is not None:
        texts, length = memory.batch
        rows.append((f"activations of {texts} x {length} tokens", memory.activations))
        rows.append(("training memory", memory.total))
    else:
        rows.append(("training memory without activations", memory.total))
    return [(name, f"{value:,}", readable(value)) for name, value in rows]


def memory_note(plan: PlanRecord) -> str:
    """What is counted as training memory, and what isn't."""
    return MEMORY_NOTE if plan.memory.activations is None else ACTIVATIONS_NOTE


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


def readable(size: int) -> str:
    """Bytes in the largest binary unit of which there is one: "1.5 MiB"."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def in_bytes(size: int) -> str:
    return f"{size:,} bytes"


# --- pictures: what widget and figure draw


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
    """Bytes: of the stored adapter in both formats, of a stored LoRA, and of the base weights."""
    only_topk = plan.save_only_topk_weights
    values = [
        ("stored, all logits", plan.full_bytes, not only_topk),
        ("stored, top-k only", plan.topk_bytes, only_topk),
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


# --- the config as code

ALWAYS_IN_CODE = ("r", "num_vectors", "vector_length", "topk")
NOT_IN_CODE = ("peft_type", "peft_version", "auto_mapping")  # PEFT sets these itself


def as_code(config: VBLoRAConfig) -> str:
    """Python that makes an equal config: what isn't at its default, and the four main numbers."""
    defaults = type(config)()
    names = [spec.name for spec in dataclasses.fields(config) if spec.name not in NOT_IN_CODE]
    own = [name for name in names if name in type(config).__annotations__]
    arguments = [
        f"    {name}={as_literal(getattr(config, name))},\n"
        for name in dict.fromkeys([*own, *names])  # this method's fields before PEFT's
        if name in ALWAYS_IN_CODE or getattr(config, name) != getattr(defaults, name)
    ]
    call = "".join(arguments)
    return f"from vblora_lab import VBLoRAConfig\n\nconfig = VBLoRAConfig(\n{call})\n"


def as_literal(value: Any) -> str:
    """A field's value as Python, short where it can be."""
    if isinstance(value, (set, list, tuple)):
        items = [as_literal(item) for item in (sorted(value) if isinstance(value, set) else value)]
        line = f"[{', '.join(items)}]"
        if len(line) <= 72:
            return line
        return "[\n" + "".join(f"        {item},\n" for item in items) + "    ]"
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str) and value.isprintable() and '"' not in value:
        if "\\" not in value:
            return f'"{value}"'
        if not value.endswith("\\"):
            return f'r"{value}"'
    return repr(value)


# --- forms


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(
        text, 96, initial_indent=indent[:2], subsequent_indent=indent, break_long_words=False
    )


def _aligned(rows: Rows, right: bool = True) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right or the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


# Half-transparent grey is a rule on white and on black. Pages style tables as they like (zebra
# rows, larger print, narrower cells): what would spoil the alignment is set here.
RULE = "1px solid rgba(128,128,128,.45)"
CELL = "border:0;background:none;font-size:inherit;white-space:pre;vertical-align:baseline;"


def _table(title: str, head: tuple[str, ...], rows: Rows, text_columns: int = 1) -> str:
    def row(cells: tuple[str, ...], tag: str, style: str) -> str:
        aligned = (
            f'<{tag} style="{CELL}text-align:{"left" if i < text_columns else "right"};'
            f'padding:1px {0 if i == len(cells) - 1 else 20}px 1px 0;{style}">'
            f"{_escaped(cell if i < text_columns else _typeset(cell))}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f'<tr style="background:none">{"".join(aligned)}</tr>'

    body = "".join(row(cells, "td", "") for cells in rows)
    line = f"border-bottom:{RULE};font-weight:normal;opacity:.75;"
    return (
        '<table style="margin:1em 0 0;border:0;border-collapse:collapse;color:inherit;'
        'font:inherit;font-variant-numeric:tabular-nums">'
        '<caption style="text-align:left;font-weight:bold;color:inherit;padding:0 0 2px">'
        f"{_escaped(title)}</caption>{row(head, 'th', line)}{body}</table>"
    )


def _typeset(cell: str) -> str:
    """Numbers with the signs that a page has and a terminal may lack; names stay as they are."""
    return SIZE_SIGN.sub("×", cell.replace("->", "→"))


def _escaped(text: str) -> str:
    return html.escape(text)
