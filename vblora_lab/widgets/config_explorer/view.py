"""What an explorer shows, as JSON values: the form, the model, and what `plan` says."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable
from typing import Any

from peft import TaskType
from torch import nn

from vblora_lab.errors import ConfigError
from vblora_lab.planning import rows, views
from vblora_lab.planning.code import as_literal
from vblora_lab.planning.plan import Plan, Target
from vblora_lab.planning.presets import PRESETS
from vblora_lab.tables import readable
from vblora_lab.tuner.config import BIAS_MODES, VBLoRAConfig
from vblora_lab.tuner.modules import CONTAINERS, layer_lists, linear_modules, own_modules
from vblora_lab.tuner.problems import Problem
from vblora_lab.tuner.wrapped import in_out_features

FIELDS = (*VBLoRAConfig.__annotations__, "task_type")
"""The fields that have a control: those of the method, and the task, which may add a head."""


def form_of(config: VBLoRAConfig) -> dict[str, Any]:
    """The fields as JSON values; sets, whose order means nothing, as sorted lists."""
    return {name: _as_json(getattr(config, name)) for name in FIELDS}


def _as_json(value: Any) -> Any:
    if isinstance(value, (set, list, tuple)):
        return sorted(value) if isinstance(value, set) else list(value)
    return value.value if isinstance(value, enum.Enum) else value


def catalogue_of(model: nn.Module, start: VBLoRAConfig) -> dict[str, Any]:
    linear = linear_modules(model)
    named = own_modules(model)
    sizes = [size for layer in linear.values() for size in in_out_features(layer)]
    presets = [
        {
            "title": preset.title,
            "description": preset.description,
            "fields": form_of(preset.config()),
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
        "presets": [{**as_given, "fields": form_of(start)}, *presets],
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


def view_of(result: Plan, config: VBLoRAConfig, names: list[str]) -> dict[str, Any]:
    return {
        "error": None,
        "fits": result.fits,
        "problems": [as_item(problem) for problem in result.problems],
        "cautions": [
            *(as_item(Problem(*caution)) for caution in config.cautions()),
            *(as_item(caution) for caution in result.cautions),
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


def as_item(problem: Problem) -> dict[str, Any]:
    """A problem with its suggestion as a value for the form, and as a person reads it."""
    value = _as_json(problem.suggestion)
    label = "" if value is None else f"{problem.field} = {as_literal(value)}"
    return {"field": problem.field, "message": problem.message, "value": value, "label": label}


def error_item(error: ConfigError) -> dict[str, Any]:
    """What says why a value can't be meant, in the same form."""
    return as_item(Problem(error.field or "", str(error), error.suggestion))


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
