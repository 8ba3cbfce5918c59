"""One pass of a model that FSDP cuts over processes: an admixture a unit instead of one for all.

Only the unit that runs is whole, such as one decoder layer. So its matrices are mixed when the
first of its layers asks, all of them in one call. From then on they are as good as those of any
pass: gradient checkpointing finds them in the backward pass and mixes nothing again. They are as
large as the matrices of a LoRA adapter, and whole in each process while the pass lasts.

FSDP sends the gradients of a unit off when those of its inputs are there. Those of the unit's
logits must be there before, and are: the admixture began after the unit did, and autograd goes
through what began later first. That's why a unit is mixed while it runs, and never ahead.

Reentrant checkpointing runs its parts without gradients, and has a backward pass of its own for
each. What is mixed under it is for that call alone: layers that are called again mix for
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vblora_lab.speed.backward import KeptMatrices, Key
from vblora_lab.speed.blocks import Layers, Pass, PooledLayer
from vblora_lab.speed.mixing import Matrices, autocast_dtype
from vblora_lab.speed.moving import mix_moving


class PassByUnit(Pass):
    """As `Pass`, of a model whose layers are whole by turns.

    Args:
        layers: of the whole model.
        adapters: those that are mixed.
        units: by name of each layer, that of its unit.
    """

    def __init__(self, layers: Layers, adapters: Sequence[str], units: Mapping[str, str]) -> None:
        super().__init__(layers, ())
        self._layers, self._units = layers, units
        self._of_unit: dict[Key, list[str]] = {}  # by adapter and unit, names of layers
        self._banks: dict[tuple[str, bool], Tensor] = {}  # by adapter, and whether it learns
        for adapter in adapters:
            for name, layer in layers[adapter].items():
                self.autocast = autocast_dtype(layer.logits(adapter)[0].device)
                self._of_unit.setdefault((adapter, units[name]), []).append(name)

    def get(self, key: Key, autocast: torch.dtype | None) -> Matrices | None:
        """The matrices of one layer, mixed now with those of its unit if there are none yet."""
        adapter, name = key
        names = self._of_unit.get((adapter, self._units[name]))
        if names is None or autocast != self.autocast:
            return None
        learns = torch.is_grad_enabled()
        if key not in self.matrices or (learns and key in self.without_grad):
            # A checkpoint would count what is saved here, and find none of it in the second call.
            with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
                self._mix({each: self._layers[adapter][each] for each in names}, adapter)
            of_unit = {(adapter, each) for each in names}
            self.without_grad = (
                self.without_grad - of_unit if learns else self.without_grad | of_unit
            )
        return super().get(key, autocast)

    def _mixed(
        self,
        logits: Sequence[tuple[Tensor, Tensor]],
        layer: PooledLayer,
        adapter: str,
        dtype: torch.dtype,
    ) -> list[Matrices]:
        # One cast of the bank: the gradients of all units are summed before they are rounded.
        key = adapter, torch.is_grad_enabled()
        if key not in self._banks:
            bank = layer.bank(adapter)
            self._banks[key] = bank.to(torch.promote_types(bank.dtype, torch.float32))
        return mix_moving(logits, self._banks[key], layer.topk[adapter], dtype)

    def kept(self) -> KeptMatrices:
        """For layers that are called again in the backward pass."""
        with_grad = {key: m for key, m in self.matrices.items() if key not in self.without_grad}
        return KeptMatrices(with_grad, self.autocast, set())


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
