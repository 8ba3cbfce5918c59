"""Fine-tuning with VB-LoRA on the HF Trainer, told as events.

As in the package, names are imported when they are first used: a recorded run is read and replayed
without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "CapturedStep": "capturing",
    "CapturingTrainer": "capturing",
    "Comparison": "runs",
    "DamagedTrace": "trace_file",
    "Evaluated": "events",
    "Event": "events",
    "EventCallback": "callback",
    "Finished": "events",
    "LearningRates": "optimizer",
    "Listener": "events",
    "Outcome": "probe",
    "Paused": "events",
    "Probe": "probe",
    "ProgressBar": "progress",
    "Repeats": "repeats",
    "Replay": "replay",
    "Resumed": "events",
    "Result": "runs",
    "Run": "runs",
    "Runs": "runs",
    "Sample": "events",
    "Sampled": "events",
    "SaveFailed": "events",
    "Saved": "events",
    "Selected": "events",
    "Started": "events",
    "Steering": "callback",
    "Stepped": "events",
    "Trace": "trace",
    "TraceRecorder": "trace",
    "TraceWriter": "trace_file",
    "TrainingSession": "session",
    "make_optimizer": "optimizer",
    "make_trainer": "trainer",
    "measure": "generate",
    "write_samples": "generate",
    "write_texts": "generate",
}

__all__ = [
    "CapturedStep",
    "CapturingTrainer",
    "Comparison",
    "DamagedTrace",
    "Evaluated",
    "Event",
    "EventCallback",
    "Finished",
    "LearningRates",
    "Listener",
    "Outcome",
    "Paused",
    "Probe",
    "ProgressBar",
    "Repeats",
    "Replay",
    "Result",
    "Resumed",
    "Run",
    "Runs",
    "Sample",
    "Sampled",
    "SaveFailed",
    "Saved",
    "Selected",
    "Started",
    "Steering",
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
    from vblora_lab.train.callback import EventCallback, Steering
    from vblora_lab.train.capturing import CapturedStep, CapturingTrainer
    from vblora_lab.train.events import (
        Evaluated,
        Event,
        Finished,
        Listener,
        Paused,
        Resumed,
        Sample,
        Sampled,
        Saved,
        SaveFailed,
        Selected,
        Started,
        Stepped,
    )
    from vblora_lab.train.generate import measure, write_samples, write_texts
    from vblora_lab.train.optimizer import LearningRates, make_optimizer
    from vblora_lab.train.probe import Outcome, Probe
    from vblora_lab.train.progress import ProgressBar
    from vblora_lab.train.repeats import Repeats
    from vblora_lab.train.replay import Replay
    from vblora_lab.train.runs import Comparison, Result, Run, Runs
    from vblora_lab.train.session import TrainingSession
    from vblora_lab.train.trace import Trace, TraceRecorder
    from vblora_lab.train.trace_file import DamagedTrace, TraceWriter
    from vblora_lab.train.trainer import make_trainer
