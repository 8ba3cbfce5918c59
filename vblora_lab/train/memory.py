"""How much memory a run has taken."""

from __future__ import annotations

import sys

import psutil
import torch


def forget_peak(device: torch.device) -> None:
    """Measure the peak of a CUDA device anew from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most memory in use so far, in bytes.

    On a CUDA device, what tensors took since `forget_peak`; elsewhere, what the process took since
    it began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
