"""A frozen linear layer that is wrapped: its weight, whatever its kind, and merging into it.

Nothing here knows where an update comes from; `layer.Linear` says what it is.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from vblora_lab.errors import MergeError, TargetError
from vblora_lab.tuner import quantised

LinearLayer = nn.Linear | Conv1D


def in_out_features(module: nn.Module) -> tuple[int, int]:
    """Input and output size of an nn.Linear (quantised ones are such too) or a Conv1D.

    Raises:
        TargetError: the module is of another kind.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):  # Conv1D is a linear layer that stores its weight (in, out)
        in_features, out_features = module.weight.shape
        return in_features, out_features
    raise TargetError(
        f"a module of type {type(module).__name__} can't be adapted: only torch.nn.Linear and "
        "transformers Conv1D can."
    )


def device_of(layer: nn.Module) -> torch.device:
    """Where a layer computes: where its weight is, unless accelerate has put that aside (offload).

    A weight that is put aside is on "meta" between passes, and a hook says where it comes back to.
    """
    device = cast(Tensor, layer.weight).device
    hook = getattr(layer, "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):  # there may be several in one
        back_to = getattr(each, "execution_device", None)
        if device.type == "meta" and back_to is not None:
            return torch.device(back_to)
    return device


def adapter_dtype(base: torch.dtype, autocast_adapter_dtype: bool = True) -> torch.dtype:
    """The dtype that an adapter has on a base weight of some dtype.

    That of the weight, but float32 where the weight is quantised, and float32 at least unless
    autocast_adapter_dtype is False.
    """
    if not base.is_floating_point or base.itemsize == 1:  # quantised, or float8
        return torch.float32
    return torch.promote_types(base, torch.float32) if autocast_adapter_dtype else base


class MergeState(NamedTuple):
    """What a layer was like: its weight if merged, that before its first merge, what was merged."""

    weight: Tensor | quantised.SetAside | None
    before: Tensor | quantised.SetAside | None
    adapters: list[str]


class WrappedLinear(nn.Module, BaseTunerLayer):
    """An nn.Linear or a transformers Conv1D with a weight that updates can be merged into.

    Args:
        base_layer: the frozen layer.

    Raises:
        TargetError: base_layer is of another kind.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = in_out_features(self.get_base_layer())
        # PEFT's name: None for a plain layer. Its get_model_status reads it here.
        self.quantization_backend = quantised.backend_of(self.get_base_layer())
        # Conv1D stores its weight (in, out): an update is transposed before it is merged.
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._weight_before_merge: Tensor | quantised.SetAside | None = None

    def base_weight(self) -> nn.Parameter:
        """The weight that is adapted, as stored: (out, in), (in, out) in a Conv1D, or packed."""
        return cast(nn.Parameter, self.get_base_layer().weight)

    def get_base_weight(self) -> Tensor:
        """The weight that is adapted as floating point numbers: dequantised where it has to be."""
        if self.quantization_backend is not None:
            return quantised.dequantised(self.get_base_layer(), self.quantization_backend)
        return self.base_weight().data

    def has_adapter(self, adapter: str) -> bool:
        """Whether this layer carries an adapter."""
        raise NotImplementedError

    def only_adapter(self) -> str | None:
        """The one adapter that is active and here; None if there is no such, or several."""
        active = self._active_adapter  # PEFT's property for it takes several times as long
        here = [active] if isinstance(active, str) else active
        if len(here) > 1:
            here = [name for name in here if self.has_adapter(name)]
        return here[0] if len(here) == 1 and self.has_adapter(here[0]) else None

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update of one adapter in the shape of the base weight, in float32 or finer."""
        raise NotImplementedError

    def adapters_to_merge(self, adapter_names: list[str] | None = None) -> list[str]:
        """Those of `adapter_names`, or of the active ones, that are here and not merged yet."""
        wanted = self.active_adapters if adapter_names is None else adapter_names
        return [
            name
            for name in dict.fromkeys(wanted)
            if self.has_adapter(name) and name not in self.merged_adapters
        ]

    def why_not_mergeable(self) -> str | None:
        """What stands against merging into the base weight; None if nothing does."""
        return quantised.why_not_mergeable(self.get_base_layer(), self.quantization_backend)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight, so that the layer costs no more than the base layer.

        The old weight is kept, so that `unmerge` gives it back bit for bit, whatever becomes of
        the adapter meanwhile. The sum is rounded to the weight's dtype once; a weight in 4 or 8
        bits is dequantised, added to and quantised again, which rounds it anew.

        Args:
            safe_merge: refuse a weight that isn't finite.
            adapter_names: which adapters; the active ones if not given.

        Raises:
            MergeError: with safe_merge, the merged weight has NaN or infinite entries; the layer
                is left as it was. Also for a base weight that is quantised in another way.
        """
        check_adapters_to_merge(self, adapter_names)  # warns of those that are merged already
        names = self.adapters_to_merge(adapter_names)
        if not names:
            return
        merged = self.merged_weight(names, safe_merge)
        if not self.merged:
            self._weight_before_merge = self._kept_weight()
        self.set_base_weight(merged)
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def merged_weight(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> Tensor:
        """The weight that merging would give, before it is quantised where it has to be.

        Takes `adapters_to_merge(adapter_names)`.

        Returns:
            (out_features, in_features), or its transpose for a Conv1D, in the weight's dtype.

        Raises:
            MergeError: see `merge`.
        """
        if reason := self.why_not_mergeable():
            raise MergeError(f"can't merge: {reason}")
        names = self.adapters_to_merge(adapter_names)
        merged = weight = self.get_base_weight()
        for name in names:
            merged = merged + self.get_delta_weight(name).to(weight.device)
        merged = merged.to(quantised.dtype_to_write(weight, self.quantization_backend))
        if safe_merge and not torch.isfinite(merged).all():
            raise MergeError(
                f"merging {', '.join(map(repr, names))} gives a weight with NaN or infinite "
                "entries; the adapter's training probably diverged. Nothing was merged."
            )
        return merged

    def merge_state(self) -> MergeState:
        """What merging changes, for `restore_merge`. Takes no memory."""
        weight = self._kept_weight() if self.merged else None
        return MergeState(weight, self._weight_before_merge, list(self.merged_adapters))

    def restore_merge(self, state: MergeState) -> None:
        """Undo the merges since `merge_state`, however far they got."""
        weight = self._weight_before_merge if state.weight is None else state.weight
        if weight is not None:
            self._put_back(weight)
        self._weight_before_merge = state.before
        self.merged_adapters[:] = state.adapters

    def _kept_weight(self) -> Tensor | quantised.SetAside:
        """The weight itself, which a merge doesn't write over."""
        if self.quantization_backend is None:
            return self.base_weight().data
        return quantised.SetAside.of(self.get_base_layer())

    def _put_back(self, before: Tensor | quantised.SetAside) -> None:
        if isinstance(before, quantised.SetAside):
            before.put_back(self.get_base_layer())
        else:
            weight = self.base_weight()
            weight.data = before.to(weight.device, weight.dtype)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base layer the very weight it had before the first merge."""
        before = self._weight_before_merge
        if before is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._put_back(before)
        self._weight_before_merge = None
        self.merged_adapters.clear()
