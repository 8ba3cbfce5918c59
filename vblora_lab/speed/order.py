"""The logits of many layers laid behind each other, each in the order in which its layer keeps it.

A's logits are kept as (r, tiles) rows and B's as (tiles, r). Side by side as (r, all tiles) they
would have to be copied crosswise, and each layer's gradient back again. So rows stay as they are,
and a list of numbers says which of them each sub-vector is made of:

    rows      (rows, num_vectors)         all logits, behind each other
    order     (rows,)                     for sub-vector number i of (r, all tiles), its row
    result    (r, all tiles, vector_length)

The order is a matter of sizes alone. Layers of equal sizes come one after the other, so that a few
ranges of numbers say it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Sizes = tuple[tuple[int, int, int], ...]  # see `order_of`


class Order:
    """Of the logits of many layers.

    Args:
        logits: per layer, those of A (r, in_tiles, num_vectors) and B (out_tiles, r, num_vectors).

    Attributes:
        parts: the same tensors, in the order in which they are laid behind each other.
        tiles: of each of them.
        sizes: of the parts, which the order is a matter of.
    """

    def __init__(self, logits: Sequence[tuple[Tensor, Tensor]]) -> None:
        # Number 2 i is the A of layer i, and 2 i + 1 its B.
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, (A, B) in enumerate(logits):
            by_size.setdefault((0, A.shape[1]), []).append(2 * i)
            by_size.setdefault((1, B.shape[0]), []).append(2 * i + 1)
        self._numbers = [number for group in by_size.values() for number in group]
        self.parts = [logits[number // 2][number % 2] for number in self._numbers]
        self.tiles = [tiles for (_, tiles), group in by_size.items() for _ in group]
        self.sizes: Sizes = tuple((*size, len(group)) for size, group in by_size.items())

    @property
    def order(self) -> Tensor:
        """(rows,) int64, see above."""
        first = self.parts[0]  # of an A
        return order_of(self.sizes, first.shape[0], first.device)

    def rows(self) -> list[Tensor]:
        """Each part as rows of logits, without a copy."""
        return [part.flatten(0, 1) for part in self.parts]

    def by_layer(self, columns: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What belongs to A and B of each layer, from what belongs to the parts."""
        by_number = dict(zip(self._numbers, columns, strict=True))
        return [(by_number[i], by_number[i + 1]) for i in range(0, len(by_number), 2)]


def order_of(groups: Sizes, r: int, device: torch.device) -> Tensor:
    """(rows,) int64: for each sub-vector of the result, its row.

    Args:
        groups: 0 for A or 1 for B, tiles, and how many there are of that kind.
        r: the rank.
    """
    parts, before = [], 0
    for side, tiles, count in groups:
        row = torch.arange(before, before + count * r * tiles, device=device)
        by_rank = (
            row.view(count, tiles, r).permute(2, 0, 1)
            if side
            else row.view(count, r, tiles).permute(1, 0, 2)
        )
        parts.append(by_rank.reshape(r, count * tiles))
        before += count * r * tiles
    return torch.cat(parts, dim=1).flatten()
