"""How `speed.py` measures: time in turns, memory at its peak, and waits for the device."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from speed_rows import CUDA, Row, adapted, make_optimizer, make_step
from torch import nn


def milliseconds(call: Callable[[], object]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if CUDA:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, warm_up: int) -> dict:
    """Median time of each call, one after the other in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            taken = milliseconds(call)
            if number >= warm_up:
                times[name].append(taken)
    return {name: round(statistics.median(taken), 4) for name, taken in times.items()}


def peak_memory(method: str, base: nn.Module, row: Row, batch: dict) -> float:
    """GiB at the peak of the third step, the base's weights included."""
    clean_up()
    model = adapted(method, base, row)
    step = make_step(model, make_optimizer(model))
    for _ in range(2):
        step(batch)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step(batch)
    peak = torch.cuda.max_memory_allocated() / 2**30
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
