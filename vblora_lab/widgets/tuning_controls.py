"""What a person sets for a search: its budget, how long it takes, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets

from vblora_lab.train.tune_space import Method
from vblora_lab.widgets.controls import group
from vblora_lab.widgets.run_panel import classed

HOW_TO_READ = """<div class="vblora-help">
<p>Each trial trains one adapter whose file fits into the budget; rank, bank, topk, modules and
learning rates are chosen anew, at random first, then near what did well.</p>
<p>A hollow dot was cut short, since it was behind the others. With a folder, the same settings go
on with a search that was stopped.</p></div>"""


class TuningControls:
    """The settings of a search, as `tune` names them; `box` is the widget.

    Args: the first values.
    """

    def __init__(
        self, bytes: int, trials: int, steps: int, batch_size: int, seed: int, out: str | Path
    ):
        self.bytes = _number("bytes", bytes, 10_000, 1)
        self.trials = _number("trials", trials, 5, 1)
        self.steps = _number("steps", steps, 10, 1)
        self.batch_size = _number("batch size", batch_size, 1, 1)
        self.seed = _number("seed", seed, 1, 0)
        self.lora = ipywidgets.Checkbox(
            value=False, description="LoRA too, in the same race", indent=False,
            layout={"width": "auto"},
        )  # fmt: skip
        self.out = ipywidgets.Text(
            value=str(out), description="folder", placeholder="none: nothing is kept", **_wide()
        )
        rows = [
            group("Budget"), self.bytes,
            group("Search"), self.trials, self.steps, self.batch_size, self.seed, self.lora,
            group("Keep it in"), self.out, ipywidgets.HTML(HOW_TO_READ),
        ]  # fmt: skip
        self.box = classed(ipywidgets.VBox(rows), "vblora-controls")

    def settings(self) -> dict[str, Any]:
        """Arguments of `tune`, but for the number of trials."""
        methods: tuple[Method, ...] = ("vblora", "lora") if self.lora.value else ("vblora",)
        numbers = {name: getattr(self, name).value for name in ("bytes", *NUMBERS)}
        return {**numbers, "methods": methods, "out": self.out.value.strip() or None}

    def enable(self, enabled: bool) -> None:
        """Whether they may be changed."""
        for name in ("bytes", "trials", *NUMBERS, "lora", "out"):
            getattr(self, name).disabled = not enabled


NUMBERS = ("steps", "batch_size", "seed")


def _number(name: str, value: int, step: int, least: int) -> ipywidgets.BoundedIntText:
    return ipywidgets.BoundedIntText(
        value=value, min=least, max=10**12, step=step, description=name, **_wide()
    )


def _wide() -> dict[str, Any]:
    return {"layout": {"width": "auto"}, "style": {"description_width": "92px"}}
