"""Several processes that train together, started by torchrun or ``accelerate launch``.

They share each batch. Only the first one writes files and emits events; what it decides, all do.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this process is the first, or the only one. torchrun and accelerate set its rank."""
    return os.environ.get("RANK", "0") == "0"


def in_any_process(flag: bool) -> bool:
    """Whether a flag is set in any process. All must call it."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=state.device)))


def leave_the_others() -> None:
    """Leave the group of processes, if there is one: at the very end, after the last of them."""
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()


def of_first_process(value: T) -> T:
    """What the first process passes, in all of them. All must call it."""
    if PartialState().num_processes > 1:
        (value,) = broadcast_object_list([value])
    return value
