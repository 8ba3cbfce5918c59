"""The update that a module gets from the bank, in numbers that a person can look at."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from vblora_lab.admixture import low_rank_matrices
from vblora_lab.errors import SelectionError, nearest
from vblora_lab.tuner.adapted import adapted_layers


@dataclass(frozen=True, eq=False)
class Update:
    """What delta W = B A is like, without its out * in numbers.

    Attributes:
        module: name of the adapted module.
        shape: of delta W: (out_features, in_features).
        singular_values: (r,) float32, largest first.
        blocks: (up to 64, up to 64) float32, the root mean square of delta W in a grid of blocks:
            rows are output features, columns input features.
        base_norm: Frobenius norm of the base weight W.
    """

    module: str
    shape: tuple[int, int]
    singular_values: np.ndarray
    blocks: np.ndarray
    base_norm: float

    @property
    def norm(self) -> float:
        """Frobenius norm of delta W: the root of the sum of its squared singular values."""
        return float(np.linalg.norm(self.singular_values))


@torch.no_grad()
def read_update(
    model: nn.Module, module: str, adapter_name: str = "default", grid: int = 64
) -> Update:
    """Read the update of one module as it is now.

    Args:
        model: a PeftModel, a VBLoRAModel or any module that holds VB-LoRA layers.
        module: name of an adapted module, as in `SubVectors.modules`.
        adapter_name: which adapter.
        grid: most blocks in a direction.

    Raises:
        SelectionError: there is no such adapted module.
    """
    layers = adapted_layers(model, adapter_name)
    if module not in layers:
        near = nearest(module, layers, cutoff=0)
        raise SelectionError(
            f"module={module!r} carries no adapter {adapter_name!r}"
            + ("." if near is None else f"; the nearest that does is {near!r}.")
        )
    layer = layers[module]
    logits_A, logits_B = (logits.float() for logits in layer.logits(adapter_name))
    bank = layer.bank(adapter_name).float()
    A, B = low_rank_matrices(logits_A, logits_B, bank, layer.topk[adapter_name])
    # B A = Q_B (R_B R_A') Q_A': the singular values are those of the r x r matrix between.
    R_A, R_B = (torch.linalg.qr(factor, mode="r")[1] for factor in (A.double().T, B.double()))
    values = torch.linalg.svdvals(R_B @ R_A.T)
    return Update(
        module=module,
        shape=(len(B), A.shape[1]),
        singular_values=values.float().cpu().numpy(),
        blocks=_block_rms(A, B, grid).cpu().numpy(),
        base_norm=float(layer.get_base_weight().float().norm()),
    )


def _block_rms(A: Tensor, B: Tensor, grid: int) -> Tensor:
    """Root mean square of B A over a grid of blocks, one row of blocks at a time."""
    rows = [B[part] for part in _parts(len(B), grid)]
    columns = _parts(A.shape[1], grid)
    return torch.stack(
        [
            torch.stack([block.square().mean() for block in ((B_rows @ A)[:, c] for c in columns)])
            for B_rows in rows
        ]
    ).sqrt()


def _parts(size: int, count: int) -> list[slice]:
    """Cut range(size) into `count` nearly equal slices, or into single numbers if it is shorter."""
    edges = np.linspace(0, size, min(size, count) + 1).round().astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]
