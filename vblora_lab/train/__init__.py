"""Fine-tuning with VB-LoRA on the HF Trainer, reported as events.

Start with `session`: one adapter, one task, one run. Then read `trainer`, which it sets up, and
`callback`, which turns what that does into events. `compare` trains several methods alike, and
`tune` searches for the config and the rates that do best.

This room imports those below it (errors, files, tables, tuner, speed, inspection, planning,
convert, bases, data, runs) and no widget: what wants to follow a run listens to its events
of `vblora_lab.runs`, whose names are here too.
"""

from vblora_lab.runs import *  # noqa: F403
from vblora_lab.speed.captured import CapturedStep as CapturedStep
from vblora_lab.train.callback import EventCallback as EventCallback
from vblora_lab.train.callback import Steering as Steering
from vblora_lab.train.capturing import CapturingTrainer as CapturingTrainer
from vblora_lab.train.generate import measure as measure
from vblora_lab.train.generate import write_samples as write_samples
from vblora_lab.train.generate import write_texts as write_texts
from vblora_lab.train.optimizer import SHORT_RUN_RATES as SHORT_RUN_RATES
from vblora_lab.train.optimizer import LearningRates as LearningRates
from vblora_lab.train.optimizer import make_optimizer as make_optimizer
from vblora_lab.train.optimizer import suited_rates as suited_rates
from vblora_lab.train.probe import Outcome as Outcome
from vblora_lab.train.probe import Probe as Probe
from vblora_lab.train.session import TrainingSession as TrainingSession
from vblora_lab.train.trainer import make_trainer as make_trainer
