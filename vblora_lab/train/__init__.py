"""Fine-tuning with VB-LoRA on the HF Trainer, told as events.

Names are imported when they are first used: a stored trace is read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "EventCallback": "callback",
    "Evaluated": "events",
    "Event": "events",
    "Finished": "events",
    "Listener": "events",
    "Sample": "events",
    "Sampled": "events",
    "Selected": "events",
    "Started": "events",
    "Stepped": "events",
    "measure": "generate",
    "write_samples": "generate",
    "write_texts": "generate",
    "LearningRates": "optimizer",
    "make_optimizer": "optimizer",
    "TrainingSession": "session",
    "Trace": "trace",
    "TraceRecorder": "trace",
    "DamagedTrace": "trace_file",
    "TraceWriter": "trace_file",
    "make_trainer": "trainer",
}

__all__ = [
    "DamagedTrace",
    "Evaluated",
    "Event",
    "EventCallback",
    "Finished",
    "LearningRates",
    "Listener",
    "Sample",
    "Sampled",
    "Selected",
    "Started",
    "Stepped",
    "Trace",
    "TraceRecorder",
    "TraceWriter",
    "TrainingSession",
    "make_optimizer",
    "make_trainer",
    "measure",
    "write_samples",
    "write_texts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


if TYPE_CHECKING:
    from vblora_lab.train.callback import EventCallback
    from vblora_lab.train.events import (
        Evaluated,
        Event,
        Finished,
        Listener,
        Sample,
        Sampled,
        Selected,
        Started,
        Stepped,
    )
    from vblora_lab.train.generate import measure, write_samples, write_texts
    from vblora_lab.train.optimizer import LearningRates, make_optimizer
    from vblora_lab.train.session import TrainingSession
    from vblora_lab.train.trace import Trace, TraceRecorder
    from vblora_lab.train.trace_file import DamagedTrace, TraceWriter
    from vblora_lab.train.trainer import make_trainer
