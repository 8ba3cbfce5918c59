"""What layers that get the same input share: its cast, and outputs that are computed together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vblora_lab.speed.frozen_linear import Adapted, frozen_linears


class _Ahead(NamedTuple):
    x: Tensor
    version: int
    layer: Adapted
    y: Tensor


class OneInput:
    """Of one forward pass, or of the parts of it that gradient checkpointing calls again.

    A layer gets what was computed for it if it is called with the very tensor that it was computed
    from, which hasn't changed since, and has the very matrices.
    """

    def __init__(self) -> None:
        self._last_cast: tuple[Tensor, int, bool, Tensor] | None = None
        self._ahead: dict[str, _Ahead] = {}

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """An input in autocast's dtype.

        Autocast would cast it in the base layer and again in the adapter, and for q, k and v each:
        they get the same tensor, so one cast, kept until the next, serves all six.
        """
        if torch.compiler.is_compiling() or x.is_inference():  # which counts no versions
            return x.to(dtype)
        now = (x._version, torch.is_grad_enabled())
        last = self._last_cast
        if last is None or last[0] is not x or last[1:3] != now:
            self._last_cast = last = (x, *now, x.to(dtype))
        return last[3]

    def computed(self, name: str, x: Tensor, layer: Adapted) -> Tensor | None:
        """The output of a layer, if it was computed together with that of another one.

        It is given once.
        """
        ahead = self._ahead.pop(name, None)
        if ahead is None or ahead.x is not x or ahead.version != x._version:
            return None
        return ahead.y if ahead.layer.A is layer.A and ahead.layer.B_T is layer.B_T else None

    def compute(self, name: str, x: Tensor, layers: Mapping[str, Adapted]) -> Tensor:
        """The output of a layer, and for later those of others that will get the same input.

        Args:
            name: of the layer that is called.
            x: (..., in), for all of them; not made under inference_mode.
            layers: by name, with this one.
        """
        outputs = frozen_linears(x, list(layers.values()))
        for (each, layer), y in zip(layers.items(), outputs, strict=True):
            self._ahead[each] = _Ahead(x, x._version, layer, y)
        return self._ahead.pop(name).y

    def end(self) -> None:
        """Let go of all tensors."""
        self._last_cast = None
        self._ahead = {}
