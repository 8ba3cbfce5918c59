"""The rows of a heatmap in groups, to be labelled and ruled off: layer, module, matrix."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from vblora_lab.inspection.selection import RowsBy, SubVectors, levels


class RowGroup(NamedTuple):
    """Neighbouring rows that share a label: those of a layer, of a module, of a matrix."""

    level: int  # 0 the widest, 2 the narrowest
    first: int  # place of its first row in the order
    rows: int
    text: str


def row_groups(sub_vectors: SubVectors, by: RowsBy = "layer") -> list[RowGroup]:
    """The labels beside rows in the order `Selection.row_order(by)`, top to bottom.

    There are none in the orders that don't follow the model ("strongest", ...).
    """
    if by not in ("layer", "module", "matrix"):
        return []
    names, block = sub_vectors.blocks
    of_layer = [names[b] if n >= 0 else "" for b, n in zip(block, sub_vectors.layer, strict=True)]
    of_module = [sub_vectors.kinds[m] for m in sub_vectors.module]
    of_matrix = sub_vectors.matrix.tolist()
    texts = {
        "layer": (of_layer, of_module, of_matrix),
        "module": (of_module, of_layer, of_matrix),
        "matrix": (of_matrix, of_layer, of_module),
    }[by]
    keys = levels(sub_vectors, by)
    order = np.lexsort(keys[::-1])
    sorted_keys = [key[order] for key in keys]
    groups = []
    for level, text in enumerate(texts):
        changes = np.any([key[1:] != key[:-1] for key in sorted_keys[: level + 1]], axis=0)
        edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(order)]
        groups += [RowGroup(level, a, b - a, text[order[a]]) for a, b in pairwise(edges)]
    return groups
