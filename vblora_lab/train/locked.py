"""While a model is trained, its adapters can't be edited by anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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
        setattr(owner, name, _refusal(name))  # an attribute of the object hides the class's method
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


def _refusal(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise SessionError(
            f"{name}: this model is being trained, and its adapters must stay as they are. "
            "Stop the session, or wait for its end, first."
        )

    return refuse
