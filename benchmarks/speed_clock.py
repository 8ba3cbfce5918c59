"""How `speed.py` measures: time in turns, memory at its peak, and waits for the device."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from speed_rows import CUDA, Row, adapted, make_optimizer, make_step
from torch import nn

T = TypeVar("T")
FULL = ("out of memory", "ALLOC_FAILED")


def milliseconds(call: Callable[[], object]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if CUDA:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, warm_up: int) -> dict:
    """Median time of each call, one after the other in each round.

    A call for which the device's memory doesn't suffice has None, and isn't made again.
    """
    times: dict[str, list[float] | None] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            before = times[name]
            if before is None:
                continue
            taken = unless_full(name, lambda call=call: milliseconds(call))
            if taken is None:
                times[name] = None
            elif number >= warm_up:
                before.append(taken)
    return {
        name: None if taken is None else round(statistics.median(taken), 4)
        for name, taken in times.items()
    }


def unless_full(name: str, call: Callable[[], T]) -> T | None:
    """What a call gives; None, and a printed line, if the device's memory doesn't suffice."""
    try:
        return call()
    except RuntimeError as error:
        # PyTorch's own error says so too; kernels of Triton and cuBLAS raise others.
        if not any(sign in str(error) for sign in FULL):
            raise
        print(f"{name}: {str(error).splitlines()[0]}", flush=True)
    clean_up()  # not before here: the error holds the frames of the call, and they the tensors
    return None


def peak_gib(call: Callable[[], object]) -> float | None:
    """GiB at the peak of a call, with all that is there before it; None without a GPU."""
    if not CUDA:
        call()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**30


def peak_memory(method: str, base: nn.Module, row: Row, batch: dict) -> float:
    """GiB at the peak of the third step, the base's weights included."""
    clean_up()
    model = adapted(method, base, row)
    step = make_step(model, make_optimizer(model))
    for _ in range(2):
        step(batch)
    peak = peak_gib(partial(step, batch))
    assert peak is not None, "there is no GPU to ask"
    del model, step
    clean_up()
    return round(peak, 3)


def waits(step: Callable, batch: dict) -> dict[str, int]:
    """How many times a step waits for the device, by file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in caught]
    return dict(Counter(places))


def clean_up() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
