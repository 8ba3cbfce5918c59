"""Reading a selection from a model: one choice for all sub-vectors, and where each of them sits."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from vblora_lab.admixture import choose
from vblora_lab.errors import SelectionError
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.layer import VBLoRALayer


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
