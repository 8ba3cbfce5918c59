"""What adapters for many users take to store, by method, against the number of users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vblora_lab.plots.style import FAINT, INK, RULE, STYLES, LabFigure, plain
from vblora_lab.tables import readable

if TYPE_CHECKING:
    from vblora_lab.planning.users import Cost


def users_figure(costs: Sequence[Cost], users: int, title: str) -> LabFigure:
    """Lines on log axes, and bytes for one number of users beside them.

    Args:
        costs: of each method.
        users: of the numbers beside the lines, from 1 to a million.
        title: above the figure.
    """
    figure = LabFigure(figsize=(10.0, 4.0), layout="constrained", facecolor="white")
    lines, bars = (plain(one) for one in figure.subplots(1, 2, width_ratios=[1.1, 1]))
    counts = np.logspace(0, 6, 61)
    order = sorted(costs, key=lambda cost: cost.once + users * cost.each)
    looks = {cost.method: STYLES[n] for n, cost in enumerate(costs)}
    for cost in costs:
        colour, dashes, _ = looks[cost.method]
        bytes_ = cost.once + counts * cost.each
        lines.plot(counts, bytes_, color=colour, linestyle=dashes, label=cost.method, linewidth=2)
    lines.axvline(users, color=FAINT, linewidth=1)
    lines.set(xscale="log", yscale="log", xlabel="users (log scale)", ylabel="bytes (log scale)")
    lines.grid(color=RULE, linewidth=0.5)
    lines.legend(fontsize=8, frameon=False, labelcolor=INK)
    totals = {cost.method: cost.once + users * cost.each for cost in order}
    bars.barh(list(totals), list(totals.values()), color=[looks[name][0] for name in totals])
    for place, total in enumerate(totals.values()):
        bars.text(total, place, f" {readable(total)}", va="center", fontsize=9, color=INK)
    bars.set(xlabel=f"bytes for {users:,} users", xlim=(0, 1.25 * max(totals.values())), xticks=[])
    bars.set_ylabel("method")
    bars.invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12)
    figure.alt = f"{title}. For {users:,} users: " + "; ".join(
        f"{name} {readable(total)}" for name, total in totals.items()
    )
    return figure
