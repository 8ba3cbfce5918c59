"""What layers that get the same input share: its cast, and outputs that are computed together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vblora_lab.speed.frozen_linear import Adapted, frozen_linears

_Ahead = tuple[Tensor, int, bool, dict[str, Tensor]]  # x, see `_now`, outputs by name of a layer


class OneInput:
    """Of one forward pass, or of the parts of it that gradient checkpointing calls again.

    A layer gets what was computed for it if it is called with the very tensor that another layer
    was called with, which hasn't changed since, and with gradients on or off as then.
    """

    def __init__(self) -> None:
        self._last_cast: tuple[Tensor, int, bool, Tensor] | None = None
        self._ahead: _Ahead | None = None

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """An input in autocast's dtype.

        Autocast would cast it in the base layer and again in the adapter, and for q, k and v each:
        they get the same tensor, so one cast, kept until the next, serves all six.
        """
        if x.is_inference():  # which counts no versions
            return x.to(dtype)
        last = self._last_cast
        if last is None or last[0] is not x or last[1:3] != _now(x):
            self._last_cast = last = (x, *_now(x), x.to(dtype))
        return last[3]

    def computed(self, name: str, x: Tensor) -> Tensor | None:
        """The output of a layer, if it was computed together with that of another one; once."""
        ahead = self._ahead
        if ahead is None or ahead[0] is not x or ahead[1:3] != _now(x):
            return None
        output = ahead[3].pop(name, None)
        if not ahead[3]:
            self._ahead = None
        return output

    def compute(
        self, name: str, x: Tensor, cast_x: Tensor, layers: Mapping[str, Adapted]
    ) -> Tensor:
        """The output of a layer, and for later those of others that will get the same input.

        Args:
            name: of the layer that is called.
            x: (..., in), with which it is called; not made under inference_mode.
            cast_x: the same in the dtype of the layers.
            layers: by name, with this one.
        """
        outputs = dict(zip(layers, frozen_linears(cast_x, list(layers.values())), strict=True))
        output = outputs.pop(name)
        self._ahead = x, *_now(x), outputs
        return output

    def end(self) -> None:
        """Let go of all tensors."""
        self._last_cast = self._ahead = None


def _now(x: Tensor) -> tuple[int, bool]:
    """What must be the same when x is met again: its version, and whether gradients are on."""
    return x._version, torch.is_grad_enabled()


def cast_input(x: Tensor, dtype: torch.dtype, inputs: OneInput | None) -> Tensor:
    """The input of a linear layer as autocast would cast it, once for all that get it."""
    if x.dtype in (dtype, torch.float64) or not x.is_floating_point():
        return x
    return x.to(dtype) if inputs is None else inputs.cast(x, dtype)
