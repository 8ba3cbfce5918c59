"""One pass of a model that FSDP cuts over processes: an admixture a unit instead of one for all.

Only the unit that runs is whole, such as one decoder layer. So its matrices are mixed when the
first of its layers asks, all of them in one call. From then on they are as good as those of any
pass: gradient checkpointing finds them in the backward pass and mixes nothing again. They are as
large as the matrices of a LoRA adapter, and whole in each process while the pass lasts.

FSDP sends the gradients of a unit off when those of its inputs are there. Those of the unit's
logits must be there before, and are: the admixture began after the unit did, and autograd goes
through what began later first. That's why a unit is mixed while it runs, and never ahead.

Reentrant checkpointing runs its parts without gradients, and has a backward pass of its own for
each, which must reach the logits before FSDP sends their gradients off. So a unit that is called
again under it is mixed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vblora_lab.speed.autograd import in_backward
from vblora_lab.speed.backward import KeptMatrices, Key
from vblora_lab.speed.blocks import Layers, Pass, PooledLayer
from vblora_lab.speed.mixing import Matrices, autocast_dtype
from vblora_lab.speed.moving import mix_moving

ByKey = dict[Key, Matrices]


class Units:
    """The adapted layers of a model, by what is whole together.

    Args:
        layers: of the whole model.
        adapters: those that are in use.
        units: by name of each layer, that of its unit.
    """

    def __init__(self, layers: Layers, adapters: Sequence[str], units: Mapping[str, str]) -> None:
        self._units = units
        self._layers: dict[Key, dict[str, PooledLayer]] = {}  # by adapter and unit, then by name
        for adapter in adapters:
            for name, layer in layers[adapter].items():
                self._layers.setdefault((adapter, units[name]), {})[name] = layer

    def __contains__(self, key: Key) -> bool:
        return (key[0], self._units.get(key[1], "")) in self._layers

    def drop(self, adapter: str) -> None:
        """Let go of a deleted adapter."""
        for key in [key for key in self._layers if key[0] == adapter]:
            del self._layers[key]

    def mixed(self, key: Key, bank: Tensor, autocast: torch.dtype | None) -> ByKey:
        """The matrices of a layer, and those of all others of its unit."""
        adapter, name = key
        layers = self._layers[adapter, self._units[name]]
        logits = [layer.logits(adapter) for layer in layers.values()]
        dtype = autocast or logits[0][0].dtype
        mixed = mix_moving(logits, bank, layers[name].topk[adapter], dtype)
        return {(adapter, each): its for each, its in zip(layers, mixed, strict=True)}

    def bank(self, key: Key) -> Tensor:
        """The bank of an adapter in float32 or finer."""
        adapter, name = key
        bank = self._layers[adapter, self._units[name]][name].bank(adapter)
        return bank.to(torch.promote_types(bank.dtype, torch.float32))


class PassByUnit(Pass):
    """As `Pass`, of a model whose layers are whole by turns; see `Units` for the arguments."""

    def __init__(self, layers: Layers, adapters: Sequence[str], units: Mapping[str, str]) -> None:
        super().__init__(layers, ())
        self._units = Units(layers, adapters, units)
        self._learns = torch.is_grad_enabled()
        # One cast for all units: their gradients are summed before they are rounded.
        self._banks: dict[tuple[str, bool], Tensor] = {}  # by adapter, and whether it learns
        for adapter in adapters:
            first = next(iter(layers[adapter].values()))
            self.autocast = autocast_dtype(first.logits(adapter)[0].device)

    def get(self, key: Key, autocast: torch.dtype | None) -> Matrices | None:
        """The matrices of one layer, mixed now with those of its unit if there are none yet."""
        if key not in self._units or autocast != self.autocast:
            return None
        learns = torch.is_grad_enabled()
        if key not in self.matrices or (learns and key in self.without_grad):
            # A checkpoint would count what is saved here, and find none of it in the second call.
            with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
                mixed = self._units.mixed(key, self._bank(key, learns), autocast)
            self.matrices |= mixed
            self.without_grad -= mixed.keys()
            self.without_grad |= set() if learns else mixed.keys()
        return super().get(key, autocast)

    def _bank(self, key: Key, learns: bool) -> Tensor:
        of = key[0], learns
        if of not in self._banks:
            self._banks[of] = self._units.bank(key)
        return self._banks[of]

    def kept(self) -> KeptMatrices | None:
        """For layers that are called again in the backward pass; None if it has none."""
        if not self._learns:
            return None
        with_grad = {key: m for key, m in self.matrices.items() if key not in self.without_grad}
        return KeptByUnit(with_grad, self.autocast, self._units)


class KeptByUnit(KeptMatrices):
    """As `KeptMatrices`; what layers got without gradients is mixed again, unit by unit.

    Args:
        matrices: that layers got with gradients.
        autocast: as it was when they were mixed.
        units: of the model.
    """

    def __init__(self, matrices: ByKey, autocast: torch.dtype | None, units: Units) -> None:
        super().__init__(matrices, autocast, set())
        self._units = units
        self._again: ByKey = {}  # each for one call
        self._learns = False  # as it was when these were mixed

    def get(self, key: Key, autocast: torch.dtype | None) -> Matrices | None:
        """The matrices for a layer that is called again in the backward pass, or None."""
        kept = super().get(key, autocast)
        if kept is not None or key not in self._units:
            return kept
        if autocast != self.autocast or not in_backward():
            return None
        learns = torch.is_grad_enabled()
        if key not in self._again or learns != self._learns:
            self._again = self._units.mixed(key, self._units.bank(key), autocast)
            self._learns = learns
            if self._again[key].A.requires_grad:  # the backward pass of this part begins
                self._again[key].A.register_hook(self._forget)
        return self._again.pop(key)

    def drop(self, adapter: str) -> None:
        """Let go of the matrices of a deleted adapter."""
        super().drop(adapter)
        self._units.drop(adapter)
        self._again = {}

    def _forget(self, _: Tensor) -> None:
        self._again = {}


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
