"""Users on one bank: what their adapters store as they come, and whose style their texts have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from vblora_lab.plots.style import FAINT, INK, RULE, STYLES, LabFigure, plain
from vblora_lab.tables import readable


def served_figure(
    users: Sequence[str],
    stored: Mapping[str, Sequence[int]],
    shares: Mapping[str, Sequence[float]],
    title: str,
) -> LabFigure:
    """Lines of bytes over users on the left, and a map of shares on the right.

    Args:
        users: their names, in the order in which they came.
        stored: by method, the bytes after each user.
        shares: by who was served (users, and the base model), from 0 to 1 how much of each user's
            style the text has.
        title: above the figure.
    """
    figure = LabFigure(figsize=(10.0, 4.0), layout="constrained", facecolor="white")
    lines, cells = (plain(one) for one in figure.subplots(1, 2))
    _draw_bytes(lines, users, stored)
    _draw_shares(cells, users, shares)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12)
    own = [f"{name} {shares[name][i]:.2f}" for i, name in enumerate(users)]
    ends = [f"{method} {readable(sizes[-1])}" for method, sizes in stored.items()]
    figure.alt = (
        f"{title}. Stored after {len(users)} users: {'; '.join(ends)}. "
        f"Share of their own style in what users get: {', '.join(own)}"
    )
    return figure


def _draw_bytes(axes: Axes, users: Sequence[str], stored: Mapping[str, Sequence[int]]) -> None:
    for (method, sizes), (colour, dashes, mark) in zip(stored.items(), STYLES, strict=False):
        label = f"{method}: {readable(sizes[-1])}"
        axes.plot(
            users, np.array(sizes) / 2**10, color=colour, linestyle=dashes, marker=mark, label=label
        )
    axes.set(xlabel="users, as they come", ylabel="bytes stored so far (KiB)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)


def _draw_shares(axes: Axes, users: Sequence[str], shares: Mapping[str, Sequence[float]]) -> None:
    table = np.array([list(row) for row in shares.values()])
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if value > 0.84 else INK  # where white comes to have the greater contrast
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(users)), users)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set(xlabel="whose style (share of its marks)", ylabel="whose adapter wrote it")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
