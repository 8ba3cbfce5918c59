"""The device that a base model is on is the one that its runs take, whatever others there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
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
    """Inside the block, "cuda" is the GPU of the model."""
    device = device_of(model)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def take_device(arguments: TrainingArguments, device: torch.device) -> None:
    """Let a Trainer in one process use this GPU, and no other.

    It would take the first GPU, and DataParallel where there are several. Its arguments keep the
    device in a cached property, and offer no other way to set it.
    """
    if device.type == "cuda" and arguments.world_size == 1:
        arguments._n_gpu = 1
        arguments.__dict__["_setup_devices"] = device
