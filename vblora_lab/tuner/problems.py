"""Why a config doesn't fit a model: each reason explained, with a value that would fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from vblora_lab.errors import TargetError, did_you_mean, nearest
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.modules import (
    CONTAINERS,
    experts_in,
    layer_lists,
    linear_modules,
    unwrapped,
)
from vblora_lab.tuner.wrapped import LinearLayer, in_out_features

# PEFT puts these in modules_to_save for classification tasks, whichever of them the model has.
HEADS_OF_TASKS: dict[str, tuple[str, ...]] = {
    TaskType.SEQ_CLS: ("classifier", "score"),
    TaskType.TOKEN_CLS: ("classifier", "score"),
    TaskType.QUESTION_ANS: ("qa_outputs",),
}
HEADS_ADDED_BY_TASK = {name for names in HEADS_OF_TASKS.values() for name in names}


@dataclass(frozen=True)
class Problem:
    """One reason why a config doesn't fit a model.

    Attributes:
        field: the config's field that is at fault.
        message: what is wrong and what would be right, in a sentence or two.
        suggestion: a value for that field that settles it; None where none is known.
        modules: full names of the modules concerned, where there are any.
    """

    field: str
    message: str
    suggestion: Any = None
    modules: tuple[str, ...] = ()


def vector_lengths(modules: Iterable[LinearLayer]) -> list[int]:
    """The vector lengths, ascending, that divide all input and output sizes of these layers."""
    return common_divisors(in_out_features(module) for module in modules)


def common_divisors(features: Iterable[tuple[int, int]]) -> list[int]:
    common = math.gcd(*(size for sizes in features for size in sizes))
    small = [n for n in range(1, math.isqrt(common) + 1) if common % n == 0]
    return sorted({*small, *(common // n for n in small)})


def is_named(name: str, named: Iterable[str]) -> bool:
    """Whether a name of a list of module names, full or only its end, is in the model."""
    return name in named or any(full.endswith(f".{name}") for full in named)


def dead_names(
    model: nn.Module, config: VBLoRAConfig, named: Mapping[str, nn.Module]
) -> list[Problem]:
    """Names and expressions that match no module."""
    kind = type(model).__name__
    problems = []
    for field in ("target_modules", "exclude_modules"):
        wanted = getattr(config, field)
        if isinstance(wanted, str):
            if any(re.fullmatch(wanted, name) for name in named):
                continue
            near = [wanted] if is_named(wanted, named) else _near(wanted, named)
            better = near
            message = (
                f"{field}: {wanted!r} matches the whole name of no module of {kind}. A string is "
                "a regular expression; to give a name or its end, put it in a list. "
            )
            hint = f"Did you mean {near!r}?"
        else:
            dead = sorted(name for name in wanted or () if not is_named(name, named))
            if not dead:
                continue
            near = list(dict.fromkeys(n for name in dead for n in _near(name, named)))
            better = sorted({*wanted, *near} - set(dead))
            message = f"{field}: {', '.join(map(repr, dead))} names no module of {kind}. "
            message += _of_experts(dead, named)
            hint = f"Did you mean {_listed(map(repr, near))}?"
        message += hint if near else endings_hint(named)
        problems.append(Problem(field, message, better or None))
    return problems


def _of_experts(dead: Iterable[str], named: Mapping[str, nn.Module]) -> str:
    """Which of these names are those of experts' weights; empty if none is."""
    experts = experts_in(named)
    hit = {name: where for name in dead for where, own in experts.items() if name in own}
    if not hit:
        return ""
    return (
        f"{', '.join(hit)} in {next(iter(hit.values()))} is a parameter that holds the weights of "
        "all experts at once; VB-LoRA adapts linear layers only. "
    )


def _near(wrong: str, named: Mapping[str, nn.Module]) -> list[str]:
    """The module name most like a wrong one, in a list of one; empty if none is like it."""
    last_parts = endings(named)
    last = wrong.rpartition(".")[2]
    near = nearest(wrong, [*last_parts, *named]) or nearest(last, last_parts)
    if near is not None:
        return [near]
    return [ending for ending in last_parts if last and last in ending][:1]


def endings(named: Mapping[str, nn.Module]) -> list[str]:
    """Last parts of the names of the linear layers: q_proj, v_proj, ..."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in named.items()
            if isinstance(unwrapped(module), LinearLayer)
        }
    )


def endings_hint(named: Mapping[str, nn.Module]) -> str:
    last_parts = endings(named)
    if not last_parts:
        return "It has no linear layer at all."
    return f"The names of its linear layers end in: {_listed(last_parts)}."


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nothing_left(config: VBLoRAConfig, named: Mapping[str, nn.Module]) -> Problem:
    filters = {
        field: getattr(config, field)
        for field in ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
        if getattr(config, field) not in (None, set(), [], "")
    }
    if not filters:
        return Problem(
            "target_modules",
            f"target_modules={config.target_modules!r} matches no module. {endings_hint(named)}",
        )
    given = ", ".join(f"{field}={value!r}" for field, value in filters.items())
    return Problem(
        next(iter(filters)),
        f"target_modules names modules of this model, but {given} leaves none of them.",
    )


def _layer_number(name: str, patterns: list[str]) -> int | None:
    """Which layer a module is in, as PEFT reads it from the name; None if in none."""
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(?P<number>\d+)\.", name)
    else:
        matches = (re.match(rf"(?:^|.*?\.){p}\.(?P<number>\d+)\.", name) for p in patterns)
        match = next((match for match in matches if match), None)
    number = match and match.group("number")
    return None if number is None else int(number)


def layer_problems(config: VBLoRAConfig, named: Mapping[str, nn.Module]) -> list[Problem]:
    """What keeps layers_to_transform and layers_pattern from meaning what they say."""
    wanted, pattern = config.layers_to_transform, config.layers_pattern
    if wanted is None or wanted == []:
        return []
    field = "layers_to_transform"
    if isinstance(config.target_modules, str):
        message = (
            f"{field}={wanted!r}: has no effect, since the targets are given by an expression "
            f"({config.target_modules!r}); list target_modules."
        )
        return [Problem("target_modules", message, endings(named) or None)]
    patterns = [pattern] if isinstance(pattern, str) else list(pattern or ())
    patterns = [pattern for pattern in patterns if pattern]
    dead = [p for p in patterns if all(_layer_number(name, [p]) is None for name in named)]
    if dead:
        return [_dead_pattern(dead[0], patterns, named)]
    numbers = {number for name in named if (number := _layer_number(name, patterns)) is not None}
    if not numbers:
        lists = layer_lists(named)
        hint = f"give layers_pattern, such as {lists[0]!r}" if lists else "leave it out"
        message = f"{field}={wanted!r}: no layer of this model is found by its number; {hint}."
        return [Problem("layers_pattern", message, lists[0]) if lists else Problem(field, message)]
    asked = [wanted] if isinstance(wanted, int) else wanted
    outside = sorted(set(asked) - numbers)
    if outside:
        inside = [number for number in asked if number in numbers] or [max(numbers)]
        few, many = "one, layer 0", f"{len(numbers)} layers, {min(numbers)} to {max(numbers)}"
        message = (
            f"{field}={wanted!r}: this model has no layer {_listed(map(str, outside))}; it has "
            f"{few if numbers == {0} else many}."
        )
        return [Problem(field, message, inside)]
    return _given_elsewhere(config, named, patterns, asked)


def _given_elsewhere(
    config: VBLoRAConfig, named: Iterable[str], patterns: list[str], asked: Sequence[int | None]
) -> list[Problem]:
    """PEFT adapts a module that is given by its full name, whatever layer it is in."""
    targets = config.target_modules or ()
    elsewhere = [n for n in named if n in targets and _layer_number(n, patterns) not in asked]
    if not elsewhere:
        return []
    message = (
        f"layers_to_transform={config.layers_to_transform!r}: has no effect on modules given by "
        f"their full names, but target_modules has {_listed(elsewhere, 4)}, in another layer; "
        "leave it out."
    )
    rest = sorted(set(targets) - set(elsewhere))
    return [Problem("target_modules", message, rest or None, tuple(elsewhere))]


def _dead_pattern(dead: str, patterns: list[str], named: Iterable[str]) -> Problem:
    lists = layer_lists(named)
    near = nearest(dead, lists) or next(iter(lists), None)
    hint = "It has no numbered layers." if near is None else f"Did you mean {near!r}?"
    message = f"layers_pattern: {dead!r} names no list of layers of this model. {hint}"
    better = list(dict.fromkeys(near if p == dead else p for p in patterns)) if near else []
    return Problem("layers_pattern", message, (better[0] if len(better) == 1 else better) or None)


def unfit_kind(module: nn.Module) -> str | None:
    """Why a module can't be adapted whatever its size; None if it can."""
    layer = unwrapped(module)
    kind = type(layer).__name__
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight and never calls it"
    if isinstance(layer, BaseTunerLayer):
        return f"carries another PEFT adapter, {kind}; call unload() first"
    return None if isinstance(layer, LinearLayer) else kind


def kind_problems(config: VBLoRAConfig, matched: Mapping[str, nn.Module]) -> list[Problem]:
    """Modules that are named, but are no linear layers that get called."""
    unfit: dict[str, str] = {}
    better: set[str] = set()
    for name, module in matched.items():
        why = unfit_kind(module)
        if why is None:
            better.add(_naming(name, config))
            continue
        within = linear_modules(module)
        better |= {inner.rpartition(".")[2] for inner in within}
        unfit[name] = why + (f"; it contains {_listed(within, 4)}" if within else "")
    if not unfit:
        return []
    listed = _listed((f"{name} ({why})" for name, why in unfit.items()), 6)
    message = (
        "only torch.nn.Linear and transformers Conv1D can be adapted, but target_modules "
        f"matches {listed}."
    )
    return [Problem("target_modules", message, sorted(better) or None, tuple(unfit))]


def _naming(full: str, config: VBLoRAConfig) -> str:
    """The entry of target_modules that names a module, or its full name if an expression does."""
    wanted = config.target_modules
    if not wanted or isinstance(wanted, str) or full in wanted:
        return full
    return next(name for name in wanted if full.endswith(f".{name}"))


def check_tiles(vector_length: int, features: Mapping[str, tuple[int, int]]) -> None:
    """Check that vector_length divides the sizes of all layers that are to be adapted.

    Args:
        vector_length: of the bank.
        features: (in_features, out_features) of each layer, by full name.

    Raises:
        TargetError: lists the layers that can't be cut, and the lengths that would do.
    """
    for problem in tile_problems(vector_length, features):
        raise TargetError(problem.message)


def tile_problems(length: int, features: Mapping[str, tuple[int, int]]) -> list[Problem]:
    misfits = [name for name, sizes in features.items() if any(size % length for size in sizes)]
    if not misfits:
        return []
    listed = _listed((f"{n} ({features[n][0]} -> {features[n][1]})" for n in misfits), 6)
    fitting = common_divisors(features.values())
    nearest = min(fitting, key=lambda fit: abs(fit - length))
    message = (
        f"vector_length={length} doesn't divide the sizes of {len(misfits)} of {len(features)} "
        f"adapted layers: {listed}. Lengths that divide all of them: "
        f"{', '.join(map(str, fitting))}; the nearest is {nearest}."
    )
    return [Problem("vector_length", message, nearest, tuple(misfits))]


def modules_to_save_problems(
    model: nn.Module, config: VBLoRAConfig, targets: Iterable[str]
) -> list[Problem]:
    field = "modules_to_save"
    problems = []
    every = dict(model.named_modules(remove_duplicate=False))
    wanted = config.modules_to_save or []
    for ending in wanted:
        others = [name for name in wanted if name != ending]
        found = {name: module for name, module in every.items() if name.endswith(ending)}
        if not found and ending not in HEADS_ADDED_BY_TASK:
            children = {name.rpartition(".")[2]: module for name, module in every.items()}
            near = nearest(ending, children)
            hint = did_you_mean(ending, children)
            message = f"{field}: {ending!r} names no module of {type(model).__name__}.{hint}"
            problems.append(Problem(field, message, [*others, *filter(None, [near])] or None))
        containers = [name for name, module in found.items() if isinstance(module, CONTAINERS)]
        if containers:
            name, kind = containers[0], type(found[containers[0]]).__name__
            message = (
                f"{field}: {name} is a {kind}, which has no forward of its own; name the modules "
                "in it."
            )
            problems.append(Problem(field, message, others or None, tuple(containers)))
        # PEFT takes any ending here, 'proj' for q_proj too, and would wrap the adapted layers.
        taken = [name for name in targets if name.endswith(ending)]
        if taken:
            message = (
                f"{field}: {ending!r} is also how {_listed(taken, 3)} ends, which target_modules "
                "adapts; give the whole last part of the name of the module to save."
            )
            problems.append(Problem(field, message, others or None, tuple(taken)))
    return problems
