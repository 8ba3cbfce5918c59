"""While a model is trained, its adapters can't be edited by anything else."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import nn

from vblora_lab.errors import SessionError

# What changes adapters, in a PeftModel and in its tuner. After such an edit, the optimizer would
# have parameters that are no longer the model's, or of another dtype, or it would train on top of
# weights that the adapter is merged into.
EDITS = (
    "add_adapter",
    "add_weighted_adapter",
    "load_adapter",
    "inject_adapter",
    "delete_adapter",
    "set_adapter",
    "merge_adapter",
    "unmerge_adapter",
    "merge_and_unload",
    "unload",
    "load_state_dict",
    "requires_grad_",
    "half",
    "bfloat16",
    "float",
    "double",
)


@contextlib.contextmanager
def locked(model: nn.Module) -> Iterator[None]:
    """Inside the block, `EDITS` raise `SessionError` before anything is changed."""
    places = [(owner, name) for owner in _owners(model) for name in EDITS if hasattr(owner, name)]
    for owner, name in places:
        setattr(owner, name, Refusal(owner, name))  # hides the class's method
    try:
        yield
    finally:
        for owner, name in places:
            delattr(owner, name)


@contextlib.contextmanager
def unlocked(model: nn.Module) -> Iterator[None]:
    """Inside the block, within one of `locked`, edits are allowed: for the code that trains."""
    owners = _owners(model)
    refusals = [{name: vars(o).pop(name) for name in EDITS if name in vars(o)} for o in owners]
    try:
        yield
    finally:
        for owner, refused in zip(owners, refusals, strict=True):
            vars(owner).update(refused)


def _owners(model: nn.Module) -> list[nn.Module]:
    return [model, *filter(None, [getattr(model, "base_model", None)])]


class Refusal:
    """Stands in for a method of a model in training. In a copy of the model it is the method."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self._owner, self._name = owner, name

    def __call__(self, *_: Any, **__: Any) -> None:
        raise SessionError(
            f"{self._name}: this model is being trained, and its adapters must stay as they are. "
            "Stop the session, or wait for its end, first."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return functools.partial(_call, copy.deepcopy(self._owner, memo), self._name)

    def __reduce__(self) -> Any:
        return functools.partial, (_call, self._owner, self._name)


def _call(owner: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method that an attribute of the same name hides."""
    method = getattr(type(owner), name, None)
    if method is None:  # PEFT's classes hand on what they don't have to what they hold
        method = owner.__getattr__(name)
        return cast(Callable[..., Any], method)(*args, **kwargs)
    return method(owner, *args, **kwargs)
