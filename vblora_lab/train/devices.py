"""The device that a base model is on is the one that its runs take, whatever others there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from transformers import TrainingArguments


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    return next(model.parameters()).device


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Leave the random numbers of the CPU, and of the model's own GPU, as they were before."""
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def current_device_of(model: nn.Module) -> Iterator[None]:
    """Inside the block, "cuda" is the GPU of the model, and accelerate's device too.

    accelerate has one device in a process, the first GPU if it was not told otherwise, and moves
    models to it. It keeps it in two objects, of which the second copies the first when it is made.
    """
    device = device_of(model)
    if device.type != "cuda" or PartialState().num_processes > 1:
        yield
        return
    before = PartialState().device
    with torch.cuda.device(device):
        try:
            _set_accelerate_s_device(device)
            yield
        finally:
            _set_accelerate_s_device(before)


def _set_accelerate_s_device(device: torch.device) -> None:
    for state in (PartialState, AcceleratorState):
        if state._shared_state:
            state._shared_state["device"] = device


def take_device(arguments: TrainingArguments, device: torch.device) -> None:
    """Let a Trainer in one process use this GPU, and no other.

    It would take the first GPU, and DataParallel where there are several. Its arguments keep the
    device in a cached property, and offer no other way to set it. Making them has also set
    accelerate's device, and the current one, to the first.
    """
    if device.type == "cuda" and arguments.world_size == 1:
        arguments._n_gpu = 1
        arguments.__dict__["_setup_devices"] = device
        torch.cuda.set_device(device)
        _set_accelerate_s_device(device)
