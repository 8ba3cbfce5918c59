"""Adding the thousandth adapter takes what adding the second did.

Whenever an adapter comes or goes, PEFT walks over all modules, parameters and tensors of the model
a dozen times, and those of VB-LoRA are as many as adapters times layers. Within `of_one(name)`, a
walk in this thread sees of the adapters' parameters those of this one alone, or none where it asks
for modules. Nothing is moved: layers find the parameters of every adapter, in this thread too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Walk(threading.local):
    adapter: str | None = None


_walk = _Walk()


@contextmanager
def of_one(adapter_name: str) -> Iterator[None]:
    """Within, walks over a model don't see the parameters of other adapters.

    Args:
        adapter_name: the adapter that comes or goes.
    """
    before = _walk.adapter
    try:
        _walk.adapter = adapter_name
        yield
    finally:
        _walk.adapter = before


def the_one() -> str | None:
    """The adapter that comes or goes in this thread now."""
    return _walk.adapter


class ByAdapter(nn.ParameterDict):
    """Parameters by adapter, of which a walk within `of_one` sees one."""

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Itself, or nothing within `of_one`; then its parameters aren't named either."""
        if _walk.adapter is None:
            yield from super().named_modules(memo, prefix, remove_duplicate)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if _walk.adapter is None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        elif (parameter := self._parameters.get(_walk.adapter)) is not None:
            kept = parameter if keep_vars else parameter.detach()
            destination[prefix + _walk.adapter] = kept

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        adapter = _walk.adapter
        if adapter is None:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        elif adapter in self:
            one = nn.ParameterDict({adapter: self._parameters[adapter]})
            one._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            self._parameters[adapter] = one._parameters[adapter]  # the same, or with `assign` new
