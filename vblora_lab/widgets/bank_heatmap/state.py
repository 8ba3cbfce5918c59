"""From selections to what travels to the browser: values of traits, no widget needed.

Arrays travel as bytes: little-endian, in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from vblora_lab.inspection.chance import module_use, modules_of, notice
from vblora_lab.inspection.rows import row_groups
from vblora_lab.inspection.selection import ColumnsBy, RowsBy, Selection

if TYPE_CHECKING:
    from vblora_lab.inspection.updates import Update

Traits = dict[str, Any]


def of_frames(frames: Sequence[Selection], start: Selection) -> Traits:
    """What each frame holds, stacked. `start`: what captions compare with."""
    churn = [
        (now.churn(before), now.churn(frames[0])) for before, now in pairwise([frames[0], *frames])
    ]
    uses = [module_use(frame) for frame in frames]
    captions = []
    for frame, use in zip(frames, uses, strict=True):
        told = notice(frame, None if frame is start else start, use)
        captions.append([told.headline, told.details])
    return {
        "indices": as_stack([s.indices for s in frames], _kind_of_index(frames[-1])),
        "weights": as_stack([s.weights for s in frames], "<f4"),
        "usage": as_stack([s.usage() for s in frames], "<f4"),
        "entropy": as_stack([s.entropy() for s in frames], "<f4"),
        "layer_entropy": as_stack([s.entropy_by_layer() for s in frames], "<f4"),
        "sharing": as_stack([s.sharing() for s in frames], "<f4"),
        "churn": as_bytes(np.array(churn), "<f4"),
        "spread": as_stack([use.spread for use in uses], "<f4"),
        "captions": captions,
    }


def of_start(start: Selection) -> Traits:
    """What changes are marked against."""
    return {
        "start_indices": as_bytes(start.indices, _kind_of_index(start)),
        "start_weights": as_bytes(start.weights, "<f4"),
        "start_spread": as_bytes(module_use(start).spread, "<f4"),
    }


def _kind_of_index(selection: Selection) -> str:
    return "<u2" if selection.num_vectors <= np.iinfo(np.uint16).max + 1 else "<u4"


def of_rows(selection: Selection) -> Traits:
    """Where each sub-vector sits, and how many bank vectors there are."""
    rows = selection.sub_vectors
    columns = (rows.module, rows.matrix == "B", rows.rank, rows.tile, rows.blocks[1])
    return {
        "num_vectors": selection.num_vectors,
        "modules": list(rows.module_labels),
        "grouped_by": "module" if modules_of(rows)[0] is rows.module_labels else "layer",
        "layers": list(rows.blocks[0]),
        "coordinates": as_bytes(np.stack(columns, axis=1), "<i4"),
    }


def of_rows_by(selection: Selection, by: RowsBy) -> Traits:
    """The order of the rows, and the labels beside them."""
    return {
        "row_order": as_bytes(selection.row_order(by), "<i4"),
        "groups": [list(group) for group in row_groups(selection.sub_vectors, by)],
    }


def of_columns_by(selection: Selection, by: ColumnsBy) -> Traits:
    """The order of the columns."""
    return {"column_order": as_bytes(selection.column_order(by), "<i4")}


def of_update(update: Update, module: int) -> Traits:
    """The update of the module with this number."""
    facts = {
        "module": module,
        "shape": list(update.shape),
        "grid": list(update.blocks.shape),
        "singular_values": [float(value) for value in update.singular_values],
        "norm": update.norm,
        "base_norm": update.base_norm,
    }
    return {"delta_blocks": as_bytes(update.blocks, "<f4"), "delta": facts}


def thinned(selections: Sequence[Selection], most_bytes: int) -> list[int]:
    """Numbers of as many selections as fit, evenly spread, the first and the last among them."""
    first = selections[0]
    each = first.weights.nbytes * 2 + 4 * (first.num_vectors + len(first.indices))
    most = max(2, most_bytes // each)
    spread = np.linspace(0, len(selections) - 1, most).round().astype(int).tolist()
    return sorted(set(spread))


def is_fixed(rows_by: str, columns_by: str) -> bool:
    """Whether the orders are the same whatever is chosen."""
    return rows_by in ("layer", "module", "matrix") and columns_by == "number"


def same_rows(a: Selection, b: Selection) -> bool:
    """Whether both are of one adapter, so that coordinates need not travel, nor the start."""
    rows, others = a.sub_vectors, b.sub_vectors
    if a.num_vectors != b.num_vectors or a.indices.shape != b.indices.shape:
        return False
    if rows is others:
        return True
    arrays = ("module", "matrix", "rank", "tile")
    return rows.modules == others.modules and all(
        np.array_equal(getattr(rows, name), getattr(others, name)) for name in arrays
    )


def as_bytes(array: np.ndarray, dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def as_stack(arrays: Sequence[np.ndarray], dtype: str) -> bytes:
    return b"".join(as_bytes(array, dtype) for array in arrays)
