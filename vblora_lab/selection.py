"""Selection: which bank vectors the sub-vectors of a model choose, as plain arrays.

A Selection knows where each sub-vector sits (layer, module, A or B, rank, tile) and nothing of the
model it came from, so it can be stored, compared and drawn without torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vblora_lab.errors import SelectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from vblora_lab.layers import VBLoRALayer


@dataclass(frozen=True, eq=False)
class SubVectors:
    """The coordinates of N sub-vectors: in the order of the model's modules, A before B.

    Attributes:
        modules: full names of the adapted modules, "model.decoder.layers.0.self_attn.q_proj".
        module: (N,) int32, index into `modules`.
        layer: (N,) int32, number of the transformer layer, -1 when the name has none.
        matrix: (N,) "<U1", "A" or "B".
        rank: (N,) int32, which of the r rows of A or columns of B.
        tile: (N,) int32, which piece of that row or column.
    """

    modules: tuple[str, ...]
    module: np.ndarray
    layer: np.ndarray
    matrix: np.ndarray
    rank: np.ndarray
    tile: np.ndarray

    def __len__(self) -> int:
        return len(self.module)

    def label(self, i: int) -> str:
        """Where sub-vector i sits: "layer 0 · self_attn.q_proj · A · rank 1 · tile 0"."""
        name, layer = self.modules[self.module[i]], int(self.layer[i])
        if layer >= 0:
            name = f"layer {layer} · " + re.sub(r"^(.*?\.)??\d+\.", "", name)
        return f"{name} · {self.matrix[i]} · rank {self.rank[i]} · tile {self.tile[i]}"


@dataclass(frozen=True, eq=False)
class Selection:
    """The bank vectors that each of N sub-vectors mixes, and in what shares.

    Attributes:
        sub_vectors: their coordinates.
        num_vectors: size of the bank.
        indices: (N, k) int32, the chosen bank vectors, best first.
        weights: (N, k) float32, softmax weights; rows sum to 1.
    """

    sub_vectors: SubVectors
    num_vectors: int
    indices: np.ndarray
    weights: np.ndarray

    def dense(self) -> np.ndarray:
        """(N, num_vectors) float32: the weights, 0 where a vector isn't chosen."""
        dense = np.zeros((len(self.indices), self.num_vectors), np.float32)
        np.put_along_axis(dense, self.indices, self.weights, axis=1)
        return dense

    def usage(self) -> np.ndarray:
        """(num_vectors,) float32: the weight that each bank vector has, summed over sub-vectors."""
        chosen, weights = self.indices.ravel(), self.weights.ravel()
        return np.bincount(chosen, weights, minlength=self.num_vectors).astype(np.float32)

    def counts(self) -> np.ndarray:
        """(num_vectors,) int64: how many sub-vectors chose each bank vector."""
        return np.bincount(self.indices.ravel(), minlength=self.num_vectors)

    def entropy(self) -> np.ndarray:
        """(N,) float32: -sum of w ln w in nats; 0 for one vector alone, ln k for equal shares."""
        weights = self.weights.astype(np.float64)
        logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)  # 0 ln 0 = 0
        return -(weights * logs).sum(axis=1).astype(np.float32)

    def churn(self, earlier: Selection) -> float:
        """The share of sub-vectors, 0 to 1, whose chosen set differs from an earlier one's.

        Raises:
            SelectionError: the two differ in their numbers of sub-vectors or of choices.
        """
        if self.indices.shape != earlier.indices.shape:
            raise SelectionError(
                f"these selections have {self.indices.shape} and {earlier.indices.shape} "
                "sub-vectors and choices; only selections of one model can be compared."
            )
        now, before = np.sort(self.indices, axis=1), np.sort(earlier.indices, axis=1)
        return float((now != before).any(axis=1).mean())


def read_selection(
    model: nn.Module, adapter_name: str = "default", sub_vectors: SubVectors | None = None
) -> Selection:
    """Read what a model's sub-vectors choose now.

    One top-k over all logits at once, so it can be called every training step.

    Args:
        model: a PeftModel, a VBLoRAModel or any module that holds VB-LoRA layers.
        adapter_name: which adapter.
        sub_vectors: the coordinates of an earlier reading of the same adapter, to reuse.

    Raises:
        SelectionError: the model has no such adapter, or another number of sub-vectors.
    """
    import torch  # here, so that a stored selection can be used where there is no torch

    from vblora_lab.admixture import choose
    from vblora_lab.model import adapted_layers

    layers = adapted_layers(model, adapter_name)
    if not layers:
        raise SelectionError(f"model has no VB-LoRA layer with an adapter called {adapter_name!r}.")
    first = next(iter(layers.values()))
    num_vectors = first.vblora_logits_A[adapter_name].shape[-1]
    device = first.vblora_logits_A[adapter_name].device
    with torch.no_grad():
        logits = torch.cat(
            [
                parameters[adapter_name].reshape(-1, num_vectors).to(device)
                for layer in layers.values()
                for parameters in (layer.vblora_logits_A, layer.vblora_logits_B)
            ]
        )
        indices, weights = choose(logits, first.topk[adapter_name])
        # Side by side, so that there is one wait for the device.
        both = torch.stack([indices.int(), weights.float().view(torch.int32)]).cpu().numpy()
        chosen, shares = both[0], both[1].view(np.float32)
    if sub_vectors is None:
        sub_vectors = _coordinates(layers, adapter_name)
    elif len(sub_vectors) != len(logits):
        raise SelectionError(
            f"sub_vectors holds {len(sub_vectors)} coordinates, but adapter {adapter_name!r} of "
            f"this model has {len(logits)} sub-vectors."
        )
    return Selection(sub_vectors, num_vectors, chosen, shares)


def _coordinates(layers: Mapping[str, VBLoRALayer], adapter_name: str) -> SubVectors:
    """The coordinates in the order in which the logits of A (r, tiles) and B (tiles, r) flatten."""
    modules, module, matrix, rank, tile = tuple(layers), [], [], [], []
    for number, layer in enumerate(layers.values()):
        r, in_tiles, _ = layer.vblora_logits_A[adapter_name].shape
        out_tiles, _, _ = layer.vblora_logits_B[adapter_name].shape
        rank_A, tile_A = np.indices((r, in_tiles)).reshape(2, -1)
        tile_B, rank_B = np.indices((out_tiles, r)).reshape(2, -1)
        rank += [rank_A, rank_B]
        tile += [tile_A, tile_B]
        matrix.append(np.repeat(np.array(["A", "B"]), [rank_A.size, rank_B.size]))
        module.append(np.full(rank_A.size + rank_B.size, number))
    module_of = np.concatenate(module).astype(np.int32)
    layer_of_module = np.array([_layer_number(name) for name in modules], np.int32)
    return SubVectors(
        modules=modules,
        module=module_of,
        layer=layer_of_module[module_of],
        matrix=np.concatenate(matrix),
        rank=np.concatenate(rank).astype(np.int32),
        tile=np.concatenate(tile).astype(np.int32),
    )


def _layer_number(name: str) -> int:
    """The first number in a module name stands for the transformer layer; -1 when there is none."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(match.group(1)) if match else -1
