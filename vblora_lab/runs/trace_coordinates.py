"""The coordinates in a trace: packed as .npz, and read again within a limit.

Such a file can claim any size, and a few bytes of it can grow a thousandfold. So what it claims is
looked at first: a reader takes no more memory than ``FIXED + TIMES * size of the trace``.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.lib import format as npy

from vblora_lab.inspection.selection import SubVectors

FIXED, TIMES = 2**26, 16
"""Enough for three million sub-vectors in any trace, and for more where selections follow them."""

_A_NAME = 100  # bytes that a text takes beside its letters
_NAMES = [field.name for field in fields(SubVectors)]
_LOWEST = {"module": 0, "layer": -1, "rank": 0, "tile": 0}


def pack_coordinates(where: SubVectors) -> bytes:
    """An .npz of the fields."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: np.array(getattr(where, name)) for name in _NAMES}
    np.savez_compressed(file, **arrays)
    return file.getvalue()


class CoordinatesReader:
    """Reads the coordinates of one trace.

    Args:
        size: of the trace, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = FIXED + TIMES * size
        self._last: tuple[bytes, SubVectors] | None = None

    def read(self, payload: bytes) -> SubVectors:
        """The coordinates in an .npz; the same object for the same bytes one after the other.

        Raises `ValueError` for anything else, and for more than there is memory for.
        """
        if self._last is None or self._last[0] != payload:
            try:
                arrays = self._arrays(payload)
            except Exception as error:  # whatever zipfile and numpy raise for bytes they can't read
                raise ValueError(f"its coordinates can't be read: {error}") from error
            self._last = payload, _sub_vectors(arrays)
        return self._last[1]

    def _arrays(self, payload: bytes) -> dict[str, np.ndarray]:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if entries.keys() != {f"{name}.npy" for name in _NAMES}:
                raise ValueError(f"they must hold {', '.join(_NAMES)} and nothing else")
            for entry in entries.values():
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{entry.filename} is compressed in an unknown way")
                self._take(entry.file_size)
            return {name: self._array(archive, entries[f"{name}.npy"]) for name in _NAMES}

    def _array(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
        with archive.open(entry) as packed:
            data = packed.read(entry.file_size)  # never more than that, whatever there is
        file = io.BytesIO(data)
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{entry.filename} is no array of a known kind")
        shape, _, dtype = npy.read_array_header_1_0(file)
        if len(shape) != 1 or dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"{entry.filename} is no list of numbers or texts")
        if shape[0] * dtype.itemsize != len(data) - file.tell():
            raise ValueError(f"{entry.filename} claims {shape[0]:,} entries and has others")
        if entry.filename == "modules.npy":
            self._take(_A_NAME * shape[0])
        return np.frombuffer(data, dtype, shape[0], file.tell())

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("they would take more memory than a trace of this size can need")


def _sub_vectors(arrays: dict[str, np.ndarray]) -> SubVectors:
    """Raises `ValueError` for arrays that don't belong together."""
    count = len(arrays["module"])
    for name in ("module", "layer", "matrix", "rank", "tile"):
        if len(arrays[name]) != count:
            raise ValueError(f"its coordinates have {count} module and {len(arrays[name])} {name}")
    modules, matrix = arrays["modules"], arrays["matrix"]
    if modules.size and modules.dtype.kind != "U":
        raise ValueError("its coordinates' modules are no texts")
    if count and (matrix.dtype.kind != "U" or not ((matrix == "A") | (matrix == "B")).all()):
        raise ValueError("its coordinates have a matrix other than A and B")
    numbers = {name: _numbers(name, arrays[name]) for name in _LOWEST}
    if count and numbers["module"].max() >= len(modules):
        raise ValueError(
            f"its coordinates point to module {numbers['module'].max()} of {len(modules)}"
        )
    return SubVectors(modules=tuple(map(str, modules)), matrix=matrix.astype("<U1"), **numbers)


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    """As int32. Raises `ValueError` where they are none."""
    if not array.size:
        return np.zeros(0, np.int32)
    low, high = _LOWEST[name], np.iinfo(np.int32).max
    if array.dtype.kind not in "iu" or array.min() < low or array.max() > high:
        raise ValueError(f"its coordinates' {name} must be whole numbers from {low} to {high:,}")
    return array.astype(np.int32)
