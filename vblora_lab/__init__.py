"""vblora_lab: understand, tune and use VB-LoRA (arXiv 2405.15179), natively in Hugging Face PEFT.

Names are imported when they are first used, so that ``import vblora_lab`` is quick and someone who
needs only the core never loads matplotlib, ipywidgets or the Trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "VBLoRAConfig": "tuner.config",
    "VBLoRALayer": "tuner.layer",
    "VBLoRAModel": "tuner.model",
    "Linear": "tuner.layer",
    "add_adapter": "tuner.peft",
    "get_peft_model": "tuner.peft",
    "from_pretrained": "tuner.peft",
    "register": "tuner.peft",
    "save_with_bank": "tuner.peft",
    "unregister": "tuner.peft",
    "using": "tuner.peft",
    "Plan": "planning.plan",
    "plan": "planning.plan",
    "PRESETS": "planning.presets",
    "Compression": "convert.export",
    "compress_lora": "convert.export",
    "export_lora": "convert.export",
    "Selection": "inspection.selection",
    "SubVectors": "inspection.selection",
    "read_selection": "inspection.selection",
    "Counterfactual": "inspection.counterfactual",
    "Update": "inspection.updates",
    "read_update": "inspection.updates",
    "Base": "bases",
    "load_base": "bases",
    "Task": "data",
    "load_task": "data",
    "Comparison": "train",
    "LearningRates": "train",
    "Runs": "train",
    "Trace": "train",
    "Outcome": "train",
    "Probe": "train",
    "TrainingSession": "train",
    "compare": "train.compare",
    "BankHeatmap": "widgets",
    "ConfigExplorer": "widgets",
    "LiveTraining": "widgets",
    "LossChart": "widgets",
    "TrainingStudio": "widgets",
    "check": "course",
    "hint": "course",
    "solution": "course",
    "run_demo": "demo",
    "doctor": "diagnosis",
}

__all__ = [
    "PRESETS",
    "BankHeatmap",
    "Base",
    "Comparison",
    "Compression",
    "ConfigExplorer",
    "Counterfactual",
    "LearningRates",
    "Linear",
    "LiveTraining",
    "LossChart",
    "Outcome",
    "Plan",
    "Probe",
    "Runs",
    "Selection",
    "SubVectors",
    "Task",
    "Trace",
    "TrainingSession",
    "TrainingStudio",
    "Update",
    "VBLoRAConfig",
    "VBLoRALayer",
    "VBLoRAModel",
    "add_adapter",
    "check",
    "compare",
    "compress_lora",
    "doctor",
    "export_lora",
    "from_pretrained",
    "get_peft_model",
    "hint",
    "load_base",
    "load_task",
    "plan",
    "read_selection",
    "read_update",
    "register",
    "run_demo",
    "save_with_bank",
    "solution",
    "unregister",
    "using",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


if TYPE_CHECKING:
    from vblora_lab.bases import Base, load_base
    from vblora_lab.convert.export import Compression, compress_lora, export_lora
    from vblora_lab.course import check, hint, solution
    from vblora_lab.data import Task, load_task
    from vblora_lab.demo import run_demo
    from vblora_lab.diagnosis import doctor
    from vblora_lab.inspection.selection import Selection, SubVectors, read_selection
    from vblora_lab.planning.plan import Plan, plan
    from vblora_lab.planning.presets import PRESETS
    from vblora_lab.train import Comparison, LearningRates, Runs, Trace, TrainingSession
    from vblora_lab.train.compare import compare
    from vblora_lab.tuner.config import VBLoRAConfig
    from vblora_lab.tuner.layer import Linear, VBLoRALayer
    from vblora_lab.tuner.model import VBLoRAModel
    from vblora_lab.tuner.peft import (
        add_adapter,
        from_pretrained,
        get_peft_model,
        register,
        save_with_bank,
        unregister,
        using,
    )
    from vblora_lab.widgets import (
        BankHeatmap,
        ConfigExplorer,
        LiveTraining,
        LossChart,
        TrainingStudio,
    )
