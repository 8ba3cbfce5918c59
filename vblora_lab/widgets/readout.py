"""What the training panel says in words and numbers, as HTML. Pure functions of events' fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vblora_lab.data.meaning import is_mr
from vblora_lab.errors import VBLoRAError
from vblora_lab.tables import Html, for_stylesheet

if TYPE_CHECKING:
    from vblora_lab.runs.events import Sample

NOTHING = "—"  # stands where there is no number yet

Numbers = dict[str, tuple[str, str]]  # name -> number and small print

_STATES = {  # a sign and a word for each, so that colour alone carries no meaning
    "ready": ("○", "ready"),
    "running": ("▶", "training"),
    "searching": ("▶", "searching"),
    "paused": ("‖", "paused"),
    "stopping": ("▶", "stopping"),
    "completed": ("✓", "completed"),
    "stopped": ("■", "stopped"),
    "failed": ("✕", "failed"),
}


def state(status: str) -> str:
    """A status as a sign and a word."""
    return " ".join(_STATES[status])


def header(title: str, base: str, task: str, status: str, work: str = "") -> str:
    """The panel's title line.

    Args:
        status: as `TrainingSession.status`, "searching" or "stopping".
        work: what is done now, where that takes longer than a step.
    """
    return (
        f'<div class="vblora-header"><span class="vblora-title">{escape(title)}</span>'
        f'<span class="vblora-subtitle">base model {escape(base)}, task {escape(task)}</span>'
        f'<span class="vblora-doing">{escape(work)}</span>'
        f'<span class="vblora-status vblora-{status}" role="status">{state(status)}</span></div>'
    )


def message(error: BaseException) -> str:
    """A problem, for all to see."""
    return f'<div class="vblora-message" role="alert"><b>✕</b> {escape(sentence(error))}</div>'


def sentence(error: BaseException) -> str:
    """The exception's own words; its kind too, unless it is one of this package's."""
    return str(error) if isinstance(error, VBLoRAError) else f"{type(error).__name__}: {error}"


def tiles(values: Mapping[str, tuple[str, str]]) -> str:
    """A row of numbers. `values`: name -> (number, small print below it)."""
    cells = "".join(
        f'<div class="vblora-tile"><div class="vblora-tile-name">{escape(name)}</div>'
        f'<div class="vblora-tile-number">{escape(number)}</div>'
        f'<div class="vblora-tile-note">{escape(note) or "&nbsp;"}</div></div>'
        for name, (number, note) in values.items()
    )
    return f'<div class="vblora-tiles">{cells}</div>'


def progress(step: int, total_steps: int) -> str:
    """The words beside the progress bar."""
    return f'<div class="vblora-steps">step {step} of {total_steps}</div>'


def facts(values: Mapping[str, object]) -> str:
    """A list of names and values."""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in values.items()
    )
    return f'<dl class="vblora-facts-list">{items}</dl>'


def written(results: Mapping[str, Path | BaseException]) -> str:
    """Where each export lies, or why it could not be written."""
    lines = "".join(
        f"<li><b>✓</b> {escape(what)}: {escape(str(result))}</li>"
        if isinstance(result, Path)
        else f'<li class="vblora-not"><b>✕</b> {escape(what)}: {escape(sentence(result))}</li>'
        for what, result in results.items()
    )
    return f'<ul class="vblora-written" role="status">{lines}</ul>'


def samples(before: Sequence[Sample], after: Sequence[Sample], after_step: int | None) -> str:
    """What the model writes for the same meaning representations, before training and later.

    Args:
        before: Samples of the untrained adapter; empty while there are none.
        after: Samples of the same meaning representations; empty while there are none.
        after_step: How many steps had been trained when `after` was sampled.
    """
    if not before:
        return ""
    later = "After training" if after_step is None else f"After {after_step} steps"
    heads = ("It is told", "A person would write", "Before training", later)
    rows = []
    for i, sample in enumerate(before):
        then = _said(after[i]) if after else Html(f'<span class="vblora-wait">{NOTHING}</span>')
        rows.append((_slots(sample.mr), sample.reference, _said(sample), then))
    title = '<div class="vblora-chart-title">What the model writes</div>'
    return title + for_stylesheet("vblora-samples", heads, rows)


def _slots(mr: str) -> Html:
    """A meaning representation, one slot on a line; an instruction as it is."""
    if not is_mr(mr):
        return Html(escape(mr))
    return Html("<br>".join(f"{escape(slot)}]" for slot in mr.rstrip("] ").split("], ")))


def _said(sample: Sample) -> Html:
    text = escape(sample.text) or '<span class="vblora-wait">(nothing)</span>'
    if not sample.slot_errors:
        return Html(text + _praise(sample))
    errors = "".join(f"<li>✕ {escape(error)}</li>" for error in sample.slot_errors)
    return Html(f'{text}<ul class="vblora-wrong">{errors}</ul>')


def _praise(sample: Sample) -> str:
    """Of an instruction, which has no slots, only the very words can be told to be right."""
    if is_mr(sample.mr):
        praise = "every slot is right"
    elif sample.text == sample.reference:
        praise = "word for word"
    else:
        return ""
    return f'<div class="vblora-right">✓ {praise}</div>'


def duration(seconds: float) -> str:
    """Seconds for people: "8 s", "2 min 05 s", "1 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
