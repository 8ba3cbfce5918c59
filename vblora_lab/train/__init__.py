"""Fine-tuning with VB-LoRA on the HF Trainer, told as events."""

from vblora_lab.train.callback import EventCallback
from vblora_lab.train.captured import CapturedStep, CapturingTrainer
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
from vblora_lab.train.probe import Outcome, Probe
from vblora_lab.train.session import TrainingSession
from vblora_lab.train.trace import Trace, TraceRecorder
from vblora_lab.train.trainer import make_trainer

__all__ = [
    "CapturedStep",
    "CapturingTrainer",
    "Evaluated",
    "Event",
    "EventCallback",
    "Finished",
    "LearningRates",
    "Listener",
    "Outcome",
    "Probe",
    "Sample",
    "Sampled",
    "Selected",
    "Started",
    "Stepped",
    "Trace",
    "TraceRecorder",
    "TrainingSession",
    "make_optimizer",
    "make_trainer",
    "measure",
    "write_samples",
    "write_texts",
]
