"""What `plan` says for some values of some fields, recorded for a page without a kernel.

A recording holds all that the explorer shows for every combination of these values. Most of it
hangs on few of the fields (the table of modules, on target_modules and vector_length), so it is
kept in pieces: what a piece can be, and which of that it is for each combination of the fields that
change it. `recorded.js` puts the pieces of one combination together.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import warnings
import zlib
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
from torch import nn

from vblora_lab.errors import ConfigError, did_you_mean
from vblora_lab.planning.code import as_code
from vblora_lab.planning.plan import Plan, plan
from vblora_lab.planning.target_choices import last_name, target_choices
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig
from vblora_lab.tuner.modules import linear_modules, own_modules
from vblora_lab.widgets.config_explorer.view import catalogue_of, error_item, form_of, view_of

Values = dict[str, list[Any]]
"""By field, the values that are recorded, as the form has them."""
Path = tuple[str | int, ...]

USUAL: Values = {
    "r": [1, 2, 4, 8, 16, 32],
    "num_vectors": [64, 256, 512, 1024, 2048],
    "topk": [2, 4],
    "save_only_topk_weights": [False, True],
}
FIELDS = (*USUAL, "vector_length", "target_modules")
SHORTEST, MOST_LENGTHS = 16, 3
NO_FIT = 100  # a vector_length that divides few models' sizes, to show what is said then
WHOLE = {"rows", "cuts", "problems", "cautions", "lengths", "matches"}
"""Parts of a view that are a piece each; of others, each text and number is one."""


def usual_values(model: nn.Module, config: VBLoRAConfig) -> Values:
    """Values to record: usual ones, what fits the model, and what the config has.

    Args:
        model: the base model; its parameters may be on the meta device.
        config: whose fields begin the page.
    """
    start = form_of(config)
    lengths = [n for n in _everywhere(model).vector_lengths if n >= SHORTEST][-MOST_LENGTHS:]
    numbers = USUAL | {"vector_length": [*lengths, NO_FIT]}
    values = {name: sorted({*usual, start[name]}) for name, usual in numbers.items()}
    return values | {"target_modules": list(_targets(model, start["target_modules"]).values())}


def _everywhere(model: nn.Module) -> Plan:
    """A plan for all linear layers but the output head."""
    return plan(model, VBLoRAConfig(target_modules=ALL_LINEAR))


def _targets(model: nn.Module, start: Any) -> dict[str, Any]:
    """Choices of target modules by name, that of the config among them in its own words.

    Names: PEFT compares each module with every one, and "all-linear" stands for hundreds.
    """
    choices: dict[str, Any] = target_choices(linear_modules(model))
    choices["all linear"] = list(
        dict.fromkeys(last_name(target.name) for target in _everywhere(model).targets)
    )
    for name, choice in choices.items():
        if isinstance(start, list) and sorted(start) == sorted(choice):
            choices[name] = start
    return choices if start in choices.values() else {"as given": start, **choices}


def record(model: nn.Module, config: VBLoRAConfig, values: Values | None = None) -> dict[str, Any]:
    """All that a page needs to explore a model without a kernel, as JSON values.

    It plans once for each combination of values: some ten seconds for the usual 1,500 or so, more
    for a model of many modules.

    Args:
        model: the base model; its parameters may be on the meta device. Never changed.
        config: where the page begins. Its fields without recorded values stay as they are.
        values: by field, what to record; `usual_values` if not given. The config's are among them.

    Raises:
        ConfigError: no page steps through such a field, or a value of the config is missing.
    """
    values = usual_values(model, config) if values is None else values
    _check(values, form_of(config))
    size = tuple(map(len, values.values()))
    texts: dict[Path, dict[str, int]] = {}
    which: dict[Path, np.ndarray] = {}
    combinations = product(*values.values())
    for place, chosen in zip(np.ndindex(size), combinations, strict=True):
        shown = shown_for(model, config, dict(zip(values, chosen, strict=True)))
        for path, piece in _pieces(shown):
            seen = texts.setdefault(path, {})
            of_path = which.setdefault(path, np.full(size, -1))  # -1: it isn't there
            of_path[place] = seen.setdefault(json.dumps(piece), len(seen))
    pieces = [
        {"path": path, "texts": [json.loads(text) for text in texts[path]], **_shortest(of_path)}
        for path, of_path in which.items()
    ]
    return {**_once(model, config), "values": values, "pieces": pieces}


def _check(values: Values, start: Mapping[str, Any]) -> None:
    for name, recorded in values.items():
        if name not in FIELDS:
            raise ConfigError(
                f"values has {name!r}, but a recorded explorer steps through {', '.join(FIELDS)} "
                f"alone.{did_you_mean(name, FIELDS)}",
                field=name,
            )
        if start[name] not in recorded:
            raise ConfigError(
                f"values of {name} are {recorded}, but the page begins with the config's "
                f"{start[name]!r}: add it.",
                field=name,
            )


def shown_for(model: nn.Module, config: VBLoRAConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What an explorer shows for a config with these changes: its `view`, and lines of `code`.

    Of changes that can't be meant, the view has the error alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cautions are shown
        try:
            changed = dataclasses.replace(config, **changes)
        except ConfigError as error:
            return {"view": {"error": error_item(error)}}
        view = view_of(plan(model, changed), changed, list(own_modules(model)))
    return {"view": view, "code": as_code(changed).splitlines()}


def _once(model: nn.Module, config: VBLoRAConfig) -> dict[str, Any]:
    """What stays the same whatever is chosen."""
    catalogue = catalogue_of(model, config)
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    return {
        "fields": form_of(config),
        "catalogue": {name: catalogue[name] for name in ("model", "help")},
        "targets": _targets(model, form_of(config)["target_modules"]),
        "about": f"{type(model).__name__}: {count:,} parameters in {' and '.join(dtypes)}",
    }


def packed(recording: Mapping[str, Any]) -> str:
    """A recording as short text: JSON, deflated, in base64."""
    text = json.dumps(recording, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _pieces(shown: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if not isinstance(shown, dict | list) or (path and path[-1] in WHOLE):
        yield path, shown
        return
    for key, value in shown.items() if isinstance(shown, dict) else enumerate(shown):
        yield from _pieces(value, (*path, key))


def _shortest(which: np.ndarray) -> dict[str, Any]:
    """The same with length 1 along each axis on which nothing changes."""
    for axis in range(which.ndim):
        first = which.take([0], axis)
        if (which == first).all():
            which = first
    return {"size": which.shape, "which": which.ravel().tolist()}
