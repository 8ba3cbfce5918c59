"""ConfigExplorer: every field of a config as a control, and beside it what `plan` makes of it.

The browser sends the fields of the form; the kernel answers with what is to be seen. All numbers
are `plan`'s, all sentences are those of errors and problems; the scripts beside this file lay them
out.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from matplotlib.figure import Figure
from peft import PeftConfig, TaskType
from torch import nn
from transformers import PretrainedConfig

from vblora_lab.bases import Base, load_skeleton, skeleton_of
from vblora_lab.errors import ConfigError
from vblora_lab.planning import rows, views
from vblora_lab.planning.code import as_code, as_literal
from vblora_lab.planning.plan import Plan, Target, plan
from vblora_lab.planning.presets import PRESETS
from vblora_lab.planning.worth import config_that_pays
from vblora_lab.plots.plan import plan_figure
from vblora_lab.tables import readable
from vblora_lab.tuner.config import BIAS_MODES, VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.modules import CONTAINERS, base_of, layer_lists, linear_modules, own_modules
from vblora_lab.tuner.problems import Problem
from vblora_lab.tuner.wrapped import in_out_features
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source

FIELDS = (*VBLoRAConfig.__annotations__, "task_type")
"""The fields that have a control: those of the method, and the task, which may add a head."""

Explorable = nn.Module | Base | PretrainedConfig | str | Path


SCRIPTS = ("helpers", "fields", "names", "results", "cut", "explorer")
STYLES = ("frame", "form", "sizes", "results")


class ConfigExplorer(Pictured, anywidget.AnyWidget):
    """A form for a `VBLoRAConfig` that shows live what the config would do to a model.

    Args:
        model: a model, adapted or not, on any device; a `Base`; a transformers config, or a name
            or folder for `load_skeleton`: these two are built without weights. Never changed.
        config: where the form starts; PEFT's class is welcome too. If not given, the defaults, as
            far as they fit the model and are stored in fewer bytes than LoRA.

    Raises:
        TypeError: model is none of these.
        ConfigError: config is for another method, or has a value that can't be meant.
        BaseModelError: there is no such model, or transformers can't build it.

    `config` is the last config that can be meant, `plan` what it would do and `code` Python that
    makes it. Set `config` to change the form; changing the object in place isn't seen. While the
    form says something that can't be meant, the widget shows why and these three stay.
    """

    _esm = source("canvas.js", *(f"config_explorer/{part}.js" for part in SCRIPTS))
    _css = source("theme.css", *(f"config_explorer/{part}.css" for part in STYLES))

    config: traitlets.Instance[Any] = traitlets.Instance(PeftConfig)  # made a VBLoRAConfig
    plan = traitlets.Instance(Plan, read_only=True)
    code = traitlets.Unicode(read_only=True).tag(sync=True)
    # The form, as the browser sends it: JSON values by field.
    fields: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    # Once: the model's modules, the presets, help and bounds of the fields.
    catalogue: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)
    # At each change: what is to be seen.
    view: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)

    def __init__(self, model: Explorable, config: PeftConfig | None = None, **kwargs: Any):
        self._model = base_of(_as_model(model))
        self._form_speaks = False
        start = (
            config_that_pays(self._model, VBLoRAConfig())
            if config is None
            else as_vblora_config(config)
        )
        self._names = list(own_modules(self._model))
        first = plan(self._model, start)
        super().__init__(**kwargs)
        self.set_trait("catalogue", _catalogue(self._model, start))
        self.set_trait("plan", first)
        self.config = start

    def figure(self) -> Figure:
        """The plan as a figure that stays: sizes on log axes, and the modules by layer."""
        return plan_figure(self.plan, self._names)

    def _picture(self) -> Figure:
        return self.figure()

    @traitlets.validate("config")
    def _check_config(self, proposal: Any) -> VBLoRAConfig:
        config = as_vblora_config(proposal["value"])
        config.validate()
        return config

    @traitlets.observe("config")
    def _config_was_set(self, change: Any) -> None:
        if not self._form_speaks:  # what the form says is there already
            with self.hold_sync():
                self.fields = _form_of(change["new"])
                self._show(change["new"])

    @traitlets.observe("fields")
    def _form_was_changed(self, change: Any) -> None:
        if change["new"] == _form_of(self.config) and not self.view.get("error"):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cautions are shown
                config = dataclasses.replace(self.config, **change["new"])
        except ConfigError as error:
            problem = Problem(error.field or "", str(error), error.suggestion)
            self.set_trait("view", {**self.view, "error": _as_item(problem)})
            return
        with self.hold_sync():
            self._form_speaks = True
            try:
                self.config = config
            finally:
                self._form_speaks = False
            self._show(config)

    def _show(self, config: VBLoRAConfig) -> None:
        result = plan(self._model, config)
        self.set_trait("plan", result)
        self.set_trait("code", as_code(config))
        self.set_trait("view", _view(result, config, self._names))


def _as_model(model: Explorable) -> nn.Module:
    if isinstance(model, (str, Path)):
        return load_skeleton(model)
    if isinstance(model, Base):
        return model.model
    if isinstance(model, PretrainedConfig):
        return skeleton_of(model)
    if isinstance(model, nn.Module):
        return model
    raise TypeError(
        f"model is of type {type(model).__name__}, but a ConfigExplorer takes a torch model, a "
        "Base, a transformers config, or the name of a base model."
    )


# --- what the browser gets


def _form_of(config: VBLoRAConfig) -> dict[str, Any]:
    """The fields as JSON values; sets, whose order means nothing, as sorted lists."""
    return {name: _as_json(getattr(config, name)) for name in FIELDS}


def _as_json(value: Any) -> Any:
    if isinstance(value, (set, list, tuple)):
        return sorted(value) if isinstance(value, set) else list(value)
    return value.value if isinstance(value, enum.Enum) else value


def _catalogue(model: nn.Module, start: VBLoRAConfig) -> dict[str, Any]:
    linear = linear_modules(model)
    named = own_modules(model)
    sizes = [size for layer in linear.values() for size in in_out_features(layer)]
    presets = [
        {
            "title": preset.title,
            "description": preset.description,
            "fields": _form_of(preset.config()),
        }
        for preset in PRESETS.values()
    ]
    as_given = {"title": "As given", "description": "Where this form started."}
    return {
        "model": type(model).__name__,
        "linear": list(linear),
        "trainable": [name for name, module in named.items() if _can_be_saved(module)],
        "layers": _layer_numbers(named),
        "lists": layer_lists(named),
        "largest": max(sizes, default=1),
        "presets": [{**as_given, "fields": _form_of(start)}, *presets],
        "help": {s.name: s.metadata.get("help", "") for s in dataclasses.fields(VBLoRAConfig)},
        "bias": list(BIAS_MODES),
        "tasks": [task.value for task in TaskType],
    }


def _can_be_saved(module: nn.Module) -> bool:
    return not isinstance(module, CONTAINERS) and next(module.parameters(), None) is not None


def _layer_numbers(names: Iterable[str]) -> list[int]:
    """The numbers that layers of this model have, ascending."""
    found = (rows.NUMBER.search(name) for name in names)
    return sorted({int(number.group()) for number in found if number})


def _view(result: Plan, config: VBLoRAConfig, names: list[str]) -> dict[str, Any]:
    return {
        "error": None,
        "fits": result.fits,
        "problems": [_as_item(problem) for problem in result.problems],
        "cautions": [
            *(_as_item(Problem(*caution)) for caution in config.cautions()),
            *(_as_item(caution) for caution in result.cautions),
        ],
        "facts": _facts(result),
        "parameters": [bar._asdict() for bar in rows.parameter_bars(result)],
        "stored": [bar._asdict() for bar in rows.byte_bars(result)],
        "rows": [row._asdict() for row in rows.module_rows(result, names)],
        "cuts": [_cut(name, group) for name, group in views.groups_by_size(result)],
        "bank": {name: getattr(result, name) for name in ("r", "num_vectors", "vector_length")}
        | {"topk": result.topk},
        "lengths": list(result.vector_lengths),
        "matches": {
            field: _matches(getattr(config, field), names)
            for field in ("target_modules", "exclude_modules")
        },
        "adapted": len(result.targets),
    }


def _as_item(problem: Problem) -> dict[str, Any]:
    """A problem with its suggestion as a value for the form, and as a person reads it."""
    value = _as_json(problem.suggestion)
    label = "" if value is None else f"{problem.field} = {as_literal(value)}"
    return {"field": problem.field, "message": problem.message, "value": value, "label": label}


def _facts(result: Plan) -> list[list[str]]:
    """Name, number and note of what a person wants to know first."""
    modules = len(result.targets)
    compared = [
        rows.against_lora(result.trained_parameters, result.lora_parameters),
        rows.against_lora(result.stored_bytes, result.lora_bytes),
    ]
    trained, stored = compared if result.fits else ["of what can be cut"] * 2
    return [
        ["trained parameters", f"{result.trained_parameters:,}", trained],
        ["stored adapter", readable(result.stored_bytes), stored],
        ["sub-vectors", f"{result.sub_vectors:,}", f"in {modules:,} modules"],
        [
            "training memory",
            readable(result.memory.total),
            "without activations",
        ],
    ]


def _cut(name: str, group: list[Target]) -> dict[str, Any]:
    first = group[0]
    return {
        "name": name,
        "modules": len(group),
        "in": first.in_features,
        "out": first.out_features,
        "tiles_A": first.tiles_A,
        "tiles_B": first.tiles_B,
        "sub_vectors": first.sub_vectors,
    }


def _matches(wanted: Any, names: list[str]) -> int | None:
    """How many modules an expression matches, before any filter; None if it is none."""
    if not isinstance(wanted, str):
        return None
    return sum(re.fullmatch(wanted, name) is not None for name in names)
