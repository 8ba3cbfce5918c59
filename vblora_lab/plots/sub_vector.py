"""One sub-vector as a figure: its logits, the weights of the chosen, the mixture, the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vblora_lab.plots.style import BLUE, FAINT, INK, ORANGE, RULE, STYLES, LabFigure, plain

if TYPE_CHECKING:
    from vblora_lab.inspection.one_layer import OneLayer


def sub_vector_figure(layer: OneLayer, row: int) -> LabFigure:
    """A sub-vector of a layer, and what the layer makes of its input.

    Args:
        layer: the layer.
        row: of `layer.rows`.
    """
    import torch

    from vblora_lab.admixture import choose

    chosen, shares = choose(torch.from_numpy(layer.rows[row]), layer.topk)
    indices, weights = chosen.numpy(), shares.numpy()
    figure = LabFigure(figsize=(10.0, 5.2), layout="constrained", facecolor="white")
    axes = [plain(one) for one in figure.subplots(2, 2).flat]
    colours = {int(i): STYLES[n % len(STYLES)][0] for n, i in enumerate(indices)}
    _draw_logits(axes[0], layer.rows[row], colours)
    _draw_mixture(axes[1], layer.bank, weights, colours)
    _draw_bank(axes[2], layer.bank, colours)
    _draw_output(axes[3], layer)
    mixed = " + ".join(f"{w:.2f} of vector {i}" for i, w in zip(indices, weights, strict=True))
    figure.alt = (
        f"{place_of(layer, row)}: of {len(layer.bank)} logits the largest {layer.topk} are chosen, "
        f"which gives {mixed}. The layer's output has loss {layer.loss:.3f}."
    )
    figure.suptitle(place_of(layer, row), x=0.01, ha="left", color=INK, fontsize=12)
    return figure


def place_of(layer: OneLayer, row: int) -> str:
    """Where a sub-vector is, in words."""
    r, in_tiles, _ = layer.logits_A.shape
    if row < r * in_tiles:
        return f"One sub-vector: A · rank {row // in_tiles} · tile {row % in_tiles}"
    at = row - r * in_tiles
    return f"One sub-vector: B · rank {at % r} · tile {at // r}"


def _draw_logits(axes: Axes, logits: np.ndarray, colours: dict[int, str]) -> None:
    fills = [colours.get(i, "#dfe3e8") for i in range(len(logits))]
    axes.bar(range(len(logits)), logits, color=fills)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.axhline(min(logits[i] for i in colours), color=INK, linewidth=1.0, linestyle="--")
    axes.set(xlabel="bank vector", ylabel="logit")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_title(f"1. Logits: the {len(colours)} largest are chosen", loc="left", color=INK)


def _draw_mixture(
    axes: Axes, bank: np.ndarray, weights: np.ndarray, colours: dict[int, str]
) -> None:
    places = np.arange(bank.shape[1])
    ends = np.zeros((2, len(places)))
    for (i, colour), weight in zip(colours.items(), weights, strict=True):
        part = weight * bank[i]
        below = np.where(part > 0, ends[0], ends[1])
        axes.bar(places, part, bottom=below, color=colour, label=f"{weight:.2f} of vector {i}")
        ends += [np.maximum(part, 0), np.minimum(part, 0)]
    axes.plot(places, ends.sum(0), "_", color=INK, markersize=14, markeredgewidth=2.5, label="sum")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set(xlabel="place in the sub-vector", ylabel="value")
    axes.set_title("2. Softmax, and the mixture", loc="left", color=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=3, loc="upper left")
    axes.margins(y=0.25)


def _draw_bank(axes: Axes, bank: np.ndarray, colours: dict[int, str]) -> None:
    most = 2.2 * float(np.abs(bank).max() or 1)
    length = bank.shape[1]
    for i, vector in enumerate(bank):
        places = i + (np.arange(length) + 0.5) / length * 0.84 - 0.42
        axes.bar(places, vector / most, width=0.7 / length, color=colours.get(i, "#b9c1ca"))
    axes.axhline(0, color=RULE, linewidth=0.8)
    axes.set(xlabel="bank vector", ylabel="values", yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_title("3. The bank, which all sub-vectors share", loc="left", color=INK)


def _draw_output(axes: Axes, layer: OneLayer) -> None:
    places = np.arange(len(layer.base))
    axes.bar(
        places, layer.output - layer.base, bottom=layer.base, color=BLUE, alpha=0.75, width=0.5,
        label="+ B A x",
    )  # fmt: skip
    axes.plot(places, layer.base, "_", color=FAINT, markersize=9, markeredgewidth=2, label="W x")
    axes.plot(
        places, layer.wanted, "o", color=ORANGE, markerfacecolor="white", markersize=4.5,
        label="wanted",
    )  # fmt: skip
    axes.set(xlabel="output", ylabel="value")
    axes.set_title(f"4. The layer's output: loss {layer.loss:.3f}", loc="left", color=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=3, loc="upper left")
    axes.margins(y=0.25)
