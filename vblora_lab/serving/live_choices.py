"""An adapter that is ready to be mixed: which bank vectors its sub-vectors chose, how much of each.

    indices  (r, tiles, topk)   the smallest integers that count the bank's vectors
    weights  (r, tiles, topk)   float32
    tiles    of all layers side by side: the first layer's A, its B, the second's A, ...

It takes the bytes of a stored adapter and not those of its matrices. The matrices are made for the
adapters of one batch, all of them in one admixture, and go with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vblora_lab.admixture import choose, mix
from vblora_lab.speed.blocks import Place
from vblora_lab.tuner import formats
from vblora_lab.tuner.config import VBLoRAConfig

AT_ONCE = 2**27  # numbers that are mixed in float32 at a time: 512 MiB


@dataclass(frozen=True)
class Choices:
    """The choices of one adapter.

    Attributes:
        indices: (r, tiles, topk) integers.
        weights: (r, tiles, topk) float32; those of a sub-vector sum to 1.
        bank: (num_vectors, vector_length), shared with all adapters that have it.
        layers: (in_features, out_features) by name.
    """

    indices: Tensor
    weights: Tensor
    bank: Tensor
    layers: Mapping[str, tuple[int, int]]

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without the bank."""
        return self.indices.nbytes + self.weights.nbytes

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for adapters that one admixture can mix."""
        r, _, topk = self.indices.shape
        return (id(self.bank), r, topk, *self.layers)


def choices_of(
    tensors: Mapping[str, Tensor],
    config: VBLoRAConfig,
    layers: Mapping[str, tuple[int, int]],
    bank: Tensor,
    where: str,
) -> Choices:
    """Lay the choices of a stored adapter side by side, and look at their numbers.

    Args:
        tensors: of its file, in either format, of the right shapes (see `formats.check_shapes`).
        config: of the adapter.
        layers: (in_features, out_features) of those that it adapts, by name.
        bank: (num_vectors, vector_length), where the choices are to be.
        where: names the adapter in a message.

    Raises:
        CheckpointError: numbers that no training gives.
    """
    if formats.is_topk_format(tensors):
        indices = _side_by_side(tensors, layers, formats.INDICES, where)
        first = _side_by_side(tensors, layers, formats.WEIGHTS, where)
        formats.check_choice(indices, first, config.num_vectors, where)
        first = first.float()
        last = (1 - first.sum(-1, keepdim=True)).clamp_min(0)  # rounding can leave less than 0
        weights = torch.cat([first, last], dim=-1)
    else:
        logits = _side_by_side(tensors, layers, "", where)
        formats.check_numbers(logits, where, are_logits=True)
        indices, weights = choose(logits.float(), config.topk)
    small = indices.to(formats.index_dtype(config.num_vectors))
    return Choices(small.to(bank.device), weights.to(bank.device), bank, layers)


def _side_by_side(
    tensors: Mapping[str, Tensor], layers: Mapping[str, object], ending: str, where: str
) -> Tensor:
    """(r, tiles of all layers, ...) of tensors whose keys have this ending."""
    parts = []
    for name in layers:
        keys = [f"{formats.LAYER_PREFIX}{name}.{each}{ending}" for each in formats.LOGITS]
        for key in keys if ending != formats.INDICES else ():
            formats.check_dtype(tensors[key], f"{where}: {key}")
        parts += [tensors[keys[0]], tensors[keys[1]].transpose(0, 1)]
    return torch.cat(parts, dim=1)


class LiveGroup:
    """Adapters that one admixture makes the matrices of, a `speed.rows.RowGroup`.

    Args:
        choices: of the adapters by name, all of one kind.
    """

    def __init__(self, choices: Mapping[str, Choices]) -> None:
        first = next(iter(choices.values()))
        self.names, self.layers = list(choices), first.layers
        self._bank = first.bank
        self._indices = torch.stack([each.indices for each in choices.values()])
        self._weights = torch.stack([each.weights for each in choices.values()])

    def places(self) -> list[Place]:
        """None: choices never change."""
        return []

    def mix(self, layers: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        """(adapters, r, columns): for each of these layers its columns of A, then of B_T."""
        tiles = self._tiles(layers)
        r, all_tiles = self._indices.shape[1:3]
        width = (all_tiles if tiles is None else len(tiles)) * self._bank.shape[1]
        result = torch.empty(len(self.names), r, width, dtype=dtype, device=device)
        at_once = max(1, AT_ONCE // (r * width))
        chunks = (each.split(at_once) for each in (self._indices, self._weights, result))
        for indices, weights, out in zip(*chunks, strict=True):
            if tiles is not None:
                indices, weights = indices[:, :, tiles], weights[:, :, tiles]
            out.copy_(mix(indices.int(), weights, self._bank).flatten(2))
        return result

    def _tiles(self, layers: Sequence[str]) -> Tensor | None:
        """Which tiles are those of these layers; None for all."""
        if list(layers) == list(self.layers):
            return None
        wanted, start, length = set(layers), 0, self._bank.shape[1]
        found: list[int] = []
        for name, (in_features, out_features) in self.layers.items():
            end = start + (in_features + out_features) // length
            found += range(start, end) if name in wanted else ()
            start = end
        return torch.tensor(found, device=self._indices.device)


def grouped(choices: Mapping[str, Choices]) -> Iterator[LiveGroup]:
    """As few groups as one admixture each can serve."""
    kinds: dict[tuple[object, ...], dict[str, Choices]] = {}
    for name, each in choices.items():
        kinds.setdefault(each.kind, {})[name] = each
    return map(LiveGroup, kinds.values())
