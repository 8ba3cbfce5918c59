"""What a heatmap shows, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from matplotlib.figure import Figure

from vblora_lab.errors import SelectionError
from vblora_lab.inspection.selection import Selection
from vblora_lab.plots import bank
from vblora_lab.plots.modules import module_heatmap

FigureKind = Literal["modules", "heatmap", "footprint", "usage", "entropy", "sharing", "churn"]


def draw(
    kind: FigureKind,
    selection: Selection,
    steps: Sequence[tuple[int, Selection]],
    start: Selection | None = None,
) -> Figure:
    """The figure of this kind.

    Args:
        kind: what to draw.
        selection: what is shown now.
        steps: of a trace, each with its step.
        start: what the same adapter chose at the start, for "modules".

    Raises:
        ValueError: there is no such kind.
        SelectionError: the kind needs a trace.
    """
    if kind not in get_args(FigureKind):
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(get_args(FigureKind))}.")
    if kind == "modules":
        return module_heatmap(selection, start)
    if kind in ("footprint", "churn"):
        if len(steps) < 2:
            raise SelectionError(f"kind={kind!r} needs a trace: BankHeatmap(trace).")
        if kind == "footprint":
            return bank.footprint(steps[0][1], steps[-1][1])
        return bank.churn_curve(steps)
    figures = {
        "heatmap": bank.selection_heatmap,
        "usage": bank.usage_histogram,
        "entropy": bank.entropy_by_layer,
        "sharing": bank.layer_sharing,
    }
    return figures[kind](selection)
