"""Widgets for notebooks: a config explorer, a bank heatmap, a loss chart, and panels for training.

Names are resolved when they are first used: a heatmap of a stored selection needs no trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vblora_lab.widgets.bank_heatmap import BankHeatmap
    from vblora_lab.widgets.config_explorer import ConfigExplorer
    from vblora_lab.widgets.live import LiveTraining
    from vblora_lab.widgets.loss_chart import LossChart
    from vblora_lab.widgets.studio import TrainingStudio

__all__ = ["BankHeatmap", "ConfigExplorer", "LiveTraining", "LossChart", "TrainingStudio"]

_HOMES = {
    "BankHeatmap": "bank_heatmap",
    "ConfigExplorer": "config_explorer",
    "LiveTraining": "live",
    "LossChart": "loss_chart",
    "TrainingStudio": "studio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
