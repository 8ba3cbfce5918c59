"""The panel's sliders and lists: they hold values and turn them into a config, nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ipywidgets
from torch import nn

from vblora_lab.errors import ConfigError
from vblora_lab.planning.presets import PRESETS
from vblora_lab.planning.target_choices import SHORTEST_VECTOR, last_name, target_choices
from vblora_lab.train import LearningRates
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig
from vblora_lab.tuner.problems import vector_lengths
from vblora_lab.tuner.targets import match_targets, resolve

BANK_SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
OWN_CHOICE = "own choice"
AS_GIVEN = "as given"
WITH_CONTROL = {"r", "num_vectors", "vector_length", "topk", "target_modules"}
HOW_TO_READ = """<div class="vblora-help">
<p>LoRA trains two thin matrices, A and B, beside each target's frozen weight. VB-LoRA cuts them
into sub-vectors and mixes each from topk vectors of one bank.</p>
<p>A row of the map is a module: grey is what chance would give it, colour is more. Click a row to
see its sub-vectors.</p></div>"""


class Controls:
    """The settings of a run.

    Args:
        model: The base model; its linear layers are what can be targeted.
        config: First values of the adapter's settings.
        steps, batch_size, learning_rates, seed: First values of the run's settings.

    `box` is the widget; `config()` and `learning_rates()` are what it says, and each control can be
    read and set by its name (`steps.value`).
    """

    def __init__(
        self,
        model: nn.Module,
        config: VBLoRAConfig,
        *,
        steps: int,
        batch_size: int,
        learning_rates: LearningRates,
        seed: int,
    ):
        # Full name -> layer; PEFT's "all-linear" leaves out the one that makes the predictions.
        everything = VBLoRAConfig(target_modules=ALL_LINEAR, vector_length=1)
        _, self._linears = resolve(model, everything)
        self._config = config
        self._starts = {AS_GIVEN: config, **presets_for(model)}
        self._rates = learning_rates
        self._presets = target_choices(self._linears)
        names = self._presets["all linear"]
        chosen = _as_names(config.target_modules, names) or self._presets.get("attention", names)

        self._make_adapter_controls(config, names, chosen)
        self._make_run_controls(steps, batch_size, learning_rates, seed)
        self._offer_vector_lengths(config.vector_length)
        self._name_preset()
        self._tell_the_rest()
        self.start.observe(self._on_start, "value")
        self.preset.observe(self._on_preset, "value")
        self.targets.observe(self._on_targets, "value")
        self.box = self._laid_out()

    def _make_adapter_controls(
        self, config: VBLoRAConfig, names: Sequence[str], chosen: Sequence[str]
    ) -> None:
        self.start = ipywidgets.Dropdown(
            options=list(self._starts), description="start from",
            **_style("A preset, as long as it fits this model."),
        )  # fmt: skip
        self.also = ipywidgets.HTML()
        self.r = _slider("r", config.r, 1, 16, _help("r"))
        self.num_vectors = _dropdown(
            "bank vectors", config.num_vectors, BANK_SIZES, _help("num_vectors")
        )
        self.vector_length = ipywidgets.Dropdown(
            description="vector length", **_style(_help("vector_length"))
        )
        self.topk = _slider("topk", config.topk, 1, 8, _help("topk"))
        self.preset = ipywidgets.Dropdown(
            options=[*self._presets, OWN_CHOICE], description="targets", **_style()
        )
        self.targets = ipywidgets.SelectMultiple(
            options=names, value=tuple(chosen), rows=min(6, len(names)),
            description="modules", **_style(_help("target_modules")),
        )  # fmt: skip

    def _make_run_controls(
        self, steps: int, batch_size: int, learning_rates: LearningRates, seed: int
    ) -> None:
        self.bank_rate = _rate("bank", learning_rates.bank)
        self.logits_rate = _rate("logits", learning_rates.logits)
        self.steps = ipywidgets.BoundedIntText(
            value=steps, min=1, max=100_000, step=10, description="steps", **_style()
        )
        self.batch_size = _dropdown("batch size", batch_size, BATCH_SIZES)
        self.seed = ipywidgets.BoundedIntText(
            value=seed, min=0, max=2**31 - 1, description="seed", **_style()
        )

    def _laid_out(self) -> ipywidgets.VBox:
        box = ipywidgets.VBox(
            [
                group("Adapter"), self.start, self.also,
                self.r, self.num_vectors, self.vector_length, self.topk,
                self.preset, _after_group(self.targets),
                group("Learning rates"), self.bank_rate, _after_group(self.logits_rate),
                group("Run"), self.steps, self.batch_size, _after_group(self.seed),
                group("How to read it"), ipywidgets.HTML(HOW_TO_READ),
            ]
        )  # fmt: skip
        box.add_class("vblora-controls")
        return box

    def config(self) -> VBLoRAConfig:
        """The adapter that the controls describe. Raises `ConfigError` if they don't fit."""
        return replace(
            self._config,
            r=self.r.value,
            num_vectors=self.num_vectors.value,
            vector_length=self.vector_length.value,
            topk=self.topk.value,
            target_modules=list(self.targets.value),
        )

    def learning_rates(self) -> LearningRates:
        return LearningRates(
            bank=self.bank_rate.value, logits=self.logits_rate.value, other=self._rates.other
        )

    @property
    def rate_sliders(self) -> tuple[ipywidgets.FloatLogSlider, ...]:
        """What may be changed while a run goes on."""
        return self.bank_rate, self.logits_rate

    def enable(self, enabled: bool) -> None:
        """Let a person change the settings, or not: while a run uses them. Rates stay free."""
        for control in self.box.children:
            if hasattr(control, "disabled") and control not in self.rate_sliders:
                control.disabled = not enabled

    def _on_start(self, _change: Any) -> None:
        """Set the controls to a preset, and keep its other fields for `config`."""
        config = self._config = self._starts[self.start.value]
        self.r.max = max(self.r.max, config.r)
        self.r.value = config.r
        if config.num_vectors not in self.num_vectors.options:
            self.num_vectors.options = sorted({*self.num_vectors.options, config.num_vectors})
        self.num_vectors.value = config.num_vectors
        self.topk.value = config.topk
        names = self._presets["all linear"]
        self.targets.value = tuple(_as_names(config.target_modules, names)) or self.targets.value
        self._offer_vector_lengths(config.vector_length)
        self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        """Say which fields without a control aren't as they are by default."""
        default = VBLoRAConfig()
        rest = [
            f"{name}={getattr(self._config, name)!r}"
            for name in VBLoRAConfig.__annotations__
            if name not in WITH_CONTROL and getattr(self._config, name) != getattr(default, name)
        ]
        self.also.value = html.escape("Also: " + ", ".join(rest)) if rest else ""

    def _on_preset(self, _change: Any) -> None:
        if self.preset.value != OWN_CHOICE:
            self.targets.value = tuple(self._presets[self.preset.value])

    def _on_targets(self, _change: Any) -> None:
        self._name_preset()
        self._offer_vector_lengths(self.vector_length.value)

    def _name_preset(self) -> None:
        """Let the preset's list say what the chosen modules amount to."""
        chosen = set(self.targets.value)
        fitting = [name for name, modules in self._presets.items() if set(modules) == chosen]
        self.preset.value = fitting[0] if fitting else OWN_CHOICE

    def _offer_vector_lengths(self, wanted: int | None) -> None:
        """Offer what divides every chosen module; keep `wanted` or the nearest below it."""
        names = self.targets.value
        if not names:  # keep the list; Train will say what is missing
            return
        fitting = vector_lengths(m for name, m in self._linears.items() if last_name(name) in names)
        lengths = [length for length in fitting if length >= SHORTEST_VECTOR] or fitting
        below = [length for length in lengths if wanted is None or length <= wanted]
        self.vector_length.options = lengths
        self.vector_length.value = max(below, default=min(lengths))


def presets_for(model: nn.Module) -> dict[str, VBLoRAConfig]:
    """The configs of `PRESETS` that fit a model, by title, with their targets as last names.

    Without presets whose targets aren't last names (an expression for some layers only).
    """
    fitting = {}
    for preset in PRESETS.values():
        config = preset.config()
        found = match_targets(model, config)
        if not found.problems:
            names = list(dict.fromkeys(last_name(name) for name in found.targets))
            by_names = replace(config, target_modules=names)
            if match_targets(model, by_names).targets.keys() == found.targets.keys():
                fitting[preset.title] = by_names
    return fitting


def _as_names(target_modules: Any, names: list[str]) -> list[str]:
    """A config's target modules, as far as they are names in the list."""
    if target_modules == "all-linear":
        return names
    return [name for name in names if name in set(target_modules or ())]


def _help(field: str) -> str:
    return VBLoRAConfig.__dataclass_fields__[field].metadata["help"]


def _style(tooltip: str = "") -> dict[str, Any]:
    """Arguments all controls share. ipywidgets 7 and 8 differ in the tooltip's name."""
    new = "tooltip" in ipywidgets.IntSlider.class_trait_names()
    return {
        "style": {"description_width": "92px"},
        "layout": {"width": "auto"},
        "tooltip" if new else "description_tooltip": tooltip or None,
    }


def _slider(name: str, value: int, low: int, high: int, tooltip: str) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(
        value=value, min=low, max=max(high, value), description=name, **_style(tooltip)
    )


def _dropdown(
    name: str, value: int, options: tuple[int, ...], tooltip: str = ""
) -> ipywidgets.Dropdown:
    offered = sorted({*options, value})
    return ipywidgets.Dropdown(options=offered, value=value, description=name, **_style(tooltip))


def _rate(name: str, value: float) -> ipywidgets.FloatLogSlider:
    """A learning rate from 1e-5 to 1, in tenths of a power of ten."""
    if not 1e-5 <= value <= 1:
        raise ConfigError(
            f"learning rate {name}={value!r}: the panel's slider goes from 1e-05 to 1; "
            "for other rates use TrainingSession."
        )
    return ipywidgets.FloatLogSlider(
        value=value, base=10, min=-5, max=0, step=0.1, readout_format=".1e", description=name,
        **_style(),
    )  # fmt: skip


def group(title: str) -> ipywidgets.HTML:
    return ipywidgets.HTML(f'<div class="vblora-group">{title}</div>')


def _after_group(control: ipywidgets.DOMWidget) -> ipywidgets.DOMWidget:
    control.add_class("vblora-after-group")
    return control
