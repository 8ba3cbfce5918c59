"""A batch whose rows have different adapters, at the cost of its rows.

A round per adapter would cost a mixed batch of 64 users 64 times the launches of one. Instead the
matrices of all adapters in the batch are stacked, for all layers at once,

    A      (n, r, in_features of all layers)      one (r, in_features) for each of n samples
    B_T    (n, r, out_features of all layers)     the same of the transpose of B

and each layer takes its columns and needs two batched products, whatever the number of adapters:

    y[i] = W x[i] + b + (x[i] A[i]^T) B_T[i]

Adapters that share a bank, a rank and their layers are a `RowGroup`, which mixes all of their
sub-vectors in one admixture. Smaller ranks are filled up with rows of zeros, and a sample without
an adapter has zeros alone: neither adds anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from vblora_lab.errors import ConfigError
from vblora_lab.speed import row_kernel
from vblora_lab.speed.blocks import Place, State, spare_bytes
from vblora_lab.speed.mixing import autocast_dtype


class RowLayer(NamedTuple):
    """Of an adapted layer: its sizes, and where and in which dtype it adds an update."""

    in_features: int
    out_features: int
    device: torch.device
    dtype: torch.dtype


class RowGroup(Protocol):
    """Some adapters that one admixture makes the matrices of."""

    @property
    def names(self) -> Sequence[str]:
        """Of the adapters."""
        ...

    @property
    def layers(self) -> Mapping[str, object]:
        """The layers that all of them adapt, by name."""
        ...

    def mix(self, layers: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        """(adapters, r, columns): for each of these layers its columns of A, then of B_T."""
        ...

    def places(self) -> list[Place]:
        """Where the parameters are kept that `mix` reads; none if it reads what never changes."""
        ...


class LiveAdapters(Protocol):
    """Adapters that no layer holds, see `serving.live`."""

    def __contains__(self, name: object) -> bool: ...
    def held(self, names: Sequence[str]) -> AbstractContextManager[Sequence[RowGroup]]: ...


class _Rows(NamedTuple):
    """The matrices of one layer: columns of those of all layers, without a copy."""

    A: Tensor  # (slots, r, in_features)
    B_T: Tensor  # (slots, r, out_features)
    slots: Tensor | None  # of each sample, (samples,); None if they are in order


class RowBatch:
    """The samples of one call and their matrices. Used by one thread.

    Args:
        names: the adapter of each sample, or None.
        groups: of all adapters that are named.
        layers: of the model, by name.

    Attributes:
        samples: how many there are. The rows that a layer sees may be more: beam search repeats
            each sample, and some models flatten (batch, length). Those of one stay together.
    """

    def __init__(
        self,
        names: Sequence[str | None],
        groups: Sequence[RowGroup],
        layers: Mapping[str, RowLayer],
    ) -> None:
        missing = set(names) - {None}.union(*(group.names for group in groups))
        if missing:
            raise ConfigError(f"adapter_names: {sorted(map(repr, missing))} are in no group.")
        self.samples = len(names)
        # Neighbours of one adapter count as one sample of more rows, if all runs have a length
        # in common: a batch for one adapter is one product, not a batch of them.
        runs = [len(list(run)) for _, run in groupby(names)]
        self._names = list(names)[:: math.gcd(*runs)]
        self._groups, self._layers = groups, layers
        self._adapted = set().union(*(group.layers for group in groups))
        self._rows: dict[str, _Rows] = {}  # by layer
        self._state: State | None = None
        self._in_pass = False

    def begin_pass(self) -> None:
        """The model is called: mix for all its layers, unless what was mixed before still holds."""
        self._in_pass = True
        autocast = self._autocast()
        if torch.is_grad_enabled():
            self._state = None
        elif self._state is not None and self._state.holds(autocast):
            return
        else:
            places = [place for group in self._groups for place in group.places()]
            self._state = State(places, autocast)
        self._rows = self._mixed([name for name in self._layers if name in self._adapted])

    def end_pass(self) -> None:
        self._in_pass = False

    def add_updates(self, layer: str, output: Tensor, x: Tensor) -> Tensor:
        """The output of a base layer, and to each row the update of its sample's adapter.

        Args:
            layer: its name.
            output: (rows, ..., out_features); rows are a multiple of the samples.
            x: (rows, ..., in_features), the input of the layer.

        Raises:
            ConfigError: rows aren't a multiple of the samples.
        """
        self.check_rows(x.shape[0])
        if layer not in self._adapted:
            return output
        # A layer that is called outside of a pass of the whole model (an encoder that `generate`
        # calls first) mixes for itself.
        rows = self._rows if self._in_pass else self._mixed([layer])
        A, B_T, slots = rows[layer]
        if row_kernel.usable(output, x, A, B_T, len(self._names)):
            return row_kernel.add_to_rows(output, x, A, B_T, slots)
        if slots is not None:
            A, B_T = A.index_select(0, slots), B_T.index_select(0, slots)
        return add_by_row(output, x, A, B_T)

    def check_rows(self, rows: int) -> None:
        """Raise `ConfigError` unless rows are a multiple of the samples."""
        if rows % self.samples:
            raise ConfigError(f"adapter_names: {self.samples} names for a batch of {rows} samples.")

    def _autocast(self) -> list[object]:
        devices = {layer.device for layer in self._layers.values()}
        return [(device, autocast_dtype(device)) for device in devices]

    def _mixed(self, names: Sequence[str]) -> dict[str, _Rows]:
        """The matrices of these layers; what lies on one device in one dtype is mixed together."""
        kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name in names:
            layer = self._layers[name]
            dtype = autocast_dtype(layer.device) or layer.dtype
            kinds.setdefault((layer.device, dtype), []).append(name)
        rows: dict[str, _Rows] = {}
        for (device, dtype), of_kind in kinds.items():
            rows |= self._cut(of_kind, *self._side_by_side(of_kind, device, dtype))
        return rows

    def _side_by_side(
        self, layers: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """The matrices of all adapters, (slots, r, columns of all layers), and samples' slots."""
        mixed = []
        for group in self._groups:
            ours = [name for name in layers if name in group.layers]
            mixed += [(group, ours, group.mix(ours, device, dtype))] if ours else []
        slots = {name: i for i, name in enumerate(n for group, _, _ in mixed for n in group.names)}
        zeros = len(slots)  # a slot for samples without an update, if there are any
        rows = [slots.get(cast(str, name), zeros) for name in self._names]
        if len(mixed) == 1 and len(mixed[0][1]) == len(layers) and zeros not in rows:
            return self._in_rows(mixed[0][2], rows)
        columns = self._columns(layers)
        r, width = max(m.shape[1] for _, _, m in mixed), columns[layers[-1]][1]
        whole = torch.zeros(zeros + (zeros in rows), r, width, dtype=dtype, device=device)
        for group, ours, matrices in mixed:
            first = slots[group.names[0]]
            of_group = whole[first : first + len(group.names), : matrices.shape[1]]
            if len(ours) == len(layers):
                of_group.copy_(matrices)
                continue
            widths = [end - start for start, end in map(columns.__getitem__, ours)]
            for name, part in zip(ours, matrices.split(widths, dim=2), strict=True):
                of_group[..., slice(*columns[name])] = part
        return self._in_rows(whole, rows)

    @staticmethod
    def _in_rows(matrices: Tensor, rows: list[int]) -> tuple[Tensor, Tensor | None]:
        """One slot for each sample, if there is memory for it; else layers gather theirs."""
        if rows == list(range(len(matrices))):
            return matrices, None
        slots = torch.tensor(rows, device=matrices.device)
        needed = len(rows) * matrices[0].numel() * matrices.itemsize
        if needed > spare_bytes(matrices.device):
            return matrices, slots
        return matrices.index_select(0, slots), None

    def _columns(self, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The first of each layer's columns, and the one after its last."""
        columns, start = {}, 0
        for name in layers:
            end = start + self._layers[name].in_features + self._layers[name].out_features
            columns[name] = (start, end)
            start = end
        return columns

    def _cut(
        self, layers: Sequence[str], matrices: Tensor, slots: Tensor | None
    ) -> dict[str, _Rows]:
        cuts = {}
        for name, (start, end) in self._columns(layers).items():
            middle = start + self._layers[name].in_features
            cuts[name] = _Rows(matrices[..., start:middle], matrices[..., middle:end], slots)
        return cuts


def add_by_row(output: Tensor, x: Tensor, A: Tensor, B_T: Tensor) -> Tensor:
    """output[i] + (x[i] A[i]^T) B_T[i], where rows i of one sample stay together.

    Args:
        output: (rows, ..., out_features).
        x: (rows, ..., in_features).
        A: (samples, r, in_features), in the dtype to compute in; rows are a multiple of samples.
        B_T: (samples, r, out_features).

    Returns:
        The sum, in the shape and the dtype of the output.
    """
    samples = len(A)
    of_sample = x.reshape(samples, -1, x.shape[-1]).to(A.dtype)
    sums = output.reshape(samples, -1, output.shape[-1])
    Ax = torch.bmm(of_sample, A.transpose(1, 2))
    if sums.dtype == Ax.dtype:  # one call instead of a product and a sum
        return torch.baddbmm(sums, Ax, B_T).view(output.shape)
    return (sums + torch.bmm(Ax, B_T)).to(output.dtype).view(output.shape)
