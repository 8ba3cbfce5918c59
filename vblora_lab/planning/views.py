"""How a plan is shown: as text for terminals, as one HTML table for notebooks. Pure text-making."""

from __future__ import annotations

import html
import re
import textwrap

from vblora_lab.planning.record import PlanRecord, Skipped, Target
from vblora_lab.planning.rows import grouped
from vblora_lab.tables import aligned, count, in_bytes, readable
from vblora_lab.tables import as_html as html_table

Rows = list[tuple[str, ...]]

SIZE_SIGN = re.compile(r"(?<=\d)x(?=\d+$)")
MEMORY_NOTE = (
    "Weights in their dtype, adapter, one gradient and two AdamW numbers per trained parameter; "
    "activations come on top."
)
ACTIVATIONS_NOTE = (
    "Weights in their dtype, adapter, one gradient and two AdamW numbers per trained parameter, "
    "and what a pass keeps for its backward pass, without autocast or gradient checkpointing; what "
    "single operations take in passing comes on top."
)
INDENT = "  "
NO_SIZES = "It doesn't fit as it is, so there are no sizes to tell."


def as_text(plan: PlanRecord) -> str:
    """The plan in lines of at most 100 characters, as far as the names allow."""
    lines = [f"{heading(plan)}: {'fits' if plan.fits else 'does NOT fit'}", settings(plan)]
    for problem in (*plan.problems, *plan.cautions):
        lines += ["", *_wrapped(f"! {problem.message}")]
        if problem.suggestion is not None:
            lines += _wrapped(f"  -> {problem.field}={problem.suggestion!r}")
    lines += ["", adapted(plan)]
    lines += _lines([TARGET_HEAD, *target_rows(plan)]) if plan.targets else []
    if plan.skipped:
        lines += ["", f"Left as they are: {count(len(plan.skipped), 'module')}"]
        lines += aligned(skipped_rows(plan), text_columns=2, indent=INDENT)
    if not plan.fits:
        return "\n".join([*lines, "", NO_SIZES])
    lines += ["", *_lines([("", "VB-LoRA", f"LoRA r={plan.r}"), *size_rows(plan)])]
    lines += ["", *_lines(memory_rows(plan)), *_wrapped(memory_note(plan), "  ")]
    return "\n".join(lines)


def as_html(plan: PlanRecord) -> str:
    """The plan as a self-contained block, in the page's own colours."""
    verdict = "fits" if plan.fits else "<b>does not fit</b>"
    parts = [f"<div><b>{html.escape(heading(plan))}</b>: {verdict}</div>"]
    parts.append(f"<div>{html.escape(settings(plan))}</div>")
    for problem in (*plan.problems, *plan.cautions):
        text = html.escape(problem.message)
        if problem.suggestion is not None:
            text += f"<br>→ <code>{html.escape(f'{problem.field}={problem.suggestion!r}')}</code>"
        # A bar of one colour that stands out on white and on black.
        parts.append(f'<div style="border-left:3px solid #d9822b;padding:2px 8px">{text}</div>')
    if plan.targets:
        parts.append(_table(adapted(plan), TARGET_HEAD, target_rows(plan)))
    if plan.skipped:
        title = f"Left as they are: {count(len(plan.skipped), 'module')}"
        parts.append(_table(title, ("module", "why"), skipped_rows(plan), text_columns=2))
    if plan.fits:
        head = ("", "VB-LoRA", f"LoRA r={plan.r}")
        parts.append(_table("Sizes", head, size_rows(plan)))
        parts.append(_table("Training memory", ("", "bytes", "in short"), memory_rows(plan)))
    note = memory_note(plan) if plan.fits else NO_SIZES
    parts.append(f'<div style="margin-top:1em;opacity:.75">{html.escape(note)}</div>')
    return f'<div style="max-width:60em;line-height:1.5">{"".join(parts)}</div>'


# --- what is said, whatever the form


def _lines(rows: Rows) -> list[str]:
    return aligned(rows, indent=INDENT)


def _table(title: str, head: tuple[str, ...], rows: Rows, text_columns: int = 1) -> str:
    typeset = [
        tuple(cell if i < text_columns else _typeset(cell) for i, cell in enumerate(row))
        for row in (head, *rows)
    ]
    return html_table(typeset[0], typeset[1:], title, text_columns=text_columns)


def heading(plan: PlanRecord) -> str:
    return f"VB-LoRA plan for {plan.model}"


def settings(plan: PlanRecord) -> str:
    return (
        f"r={plan.r}, topk={plan.topk}, one bank of {plan.num_vectors} vectors of length "
        f"{plan.vector_length}"
    )


def adapted(plan: PlanRecord) -> str:
    return f"Adapted: {count(len(plan.targets), 'module')} (tiles of one, counts of all in a line)"


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
        ("  in float16", in_bytes(plan.float16_bytes), ""),
        ("  in 8 bits", in_bytes(plan.int8_bytes), ""),
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


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(
        text, 96, initial_indent=indent[:2], subsequent_indent=indent, break_long_words=False
    )


def _typeset(cell: str) -> str:
    """Numbers with the signs that a page has and a terminal may lack; names stay as they are."""
    return SIZE_SIGN.sub("×", cell.replace("->", "→"))
