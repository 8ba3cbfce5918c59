"""Which modules of a model a config names, and whether they can be adapted. Touches nothing.

Names are matched by PEFT's own function, so a config means the same here and there. What differs
is that every mismatch is found before anything is injected, and is explained: `examine` collects
the problems, and `resolve` raises them.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from peft import TaskType
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING
from peft.utils.constants import EMBEDDING_LAYER_NAMES, SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from vblora_lab.errors import TargetError
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig
from vblora_lab.tuner.layer import VBLoRALayer
from vblora_lab.tuner.wrapped import LinearLayer, in_out_features

DEFAULT_TARGETS = TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING  # PEFT's, by model_type
# PEFT puts these in modules_to_save for classification tasks, whichever of them the model has.
HEADS_OF_TASKS: dict[str, tuple[str, ...]] = {
    TaskType.SEQ_CLS: ("classifier", "score"),
    TaskType.TOKEN_CLS: ("classifier", "score"),
    TaskType.QUESTION_ANS: ("qa_outputs",),
}
HEADS_ADDED_BY_TASK = {name for names in HEADS_OF_TASKS.values() for name in names}
CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


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


@dataclass(frozen=True)
class Examination:
    """What `examine` finds.

    Attributes:
        config: a copy with target_modules, fan_in_fan_out and the heads of its task filled in.
        targets: the linear layers that the config names, unwrapped, by full name in the order of
            the model's modules; those that vector_length doesn't divide are among them.
        left_out: why each other module with a weight matrix isn't adapted, by full name.
        problems: empty if the config fits.
        dropped: what an adapter that is loaded names in vain; no problem, but worth a warning.
    """

    config: VBLoRAConfig
    targets: dict[str, LinearLayer]
    left_out: dict[str, str]
    problems: tuple[Problem, ...]
    dropped: tuple[Problem, ...]


def resolve(model: nn.Module, config: VBLoRAConfig) -> tuple[VBLoRAConfig, dict[str, LinearLayer]]:
    """Find the modules that a config adapts.

    Args:
        model: the base model, adapted already or not.
        config: never changed.

    Returns:
        A copy of the config with target_modules, fan_in_fan_out and the heads of its task filled
        in, and the modules by full name in the order of `model.named_modules()`: nn.Linear or
        Conv1D, unwrapped.

    Raises:
        ConfigError: a field was set to a value that can't be meant.
        TargetError: a name matches nothing, a match is no linear layer, or vector_length doesn't
            divide its sizes. The message lists every module concerned, and what would fit.
    """
    found = examine(model, config)
    for problem in found.dropped:
        warnings.warn(problem.message, stacklevel=2)
    if found.problems:
        raise TargetError(" ".join(problem.message for problem in found.problems))
    return found.config, found.targets


def examine(model: nn.Module, config: VBLoRAConfig) -> Examination:
    """Compare a config with a model, and collect what doesn't fit instead of raising it.

    Args:
        model: the base model, adapted already or not; parameters may be on the meta device.
        config: never changed.

    Raises:
        ConfigError: a field was set to a value that can't be meant for any model.
    """
    config = copy.deepcopy(config)
    config.validate()
    _add_heads(config)
    named = own_modules(model)
    head = _output_head(model, config) if _is_all_linear(config) else None
    problems = _fill_in_targets(model, config, named, head)
    in_vain = [*_dead_names(model, config, named), *_layer_problems(config, named)]
    dropped: list[Problem] = []
    if config.inference_mode:  # a stored adapter, in which PEFT let names in vain pass
        dropped, in_vain = _drop_dead_names(config, named, in_vain)
    problems += in_vain

    matched = {n: m for n, m in named.items() if check_target_module_exists(config, n)}
    if not matched and not problems:
        problems.append(_nothing_left(config, named))
    fit = {n: _unwrapped(m) for n, m in matched.items() if _unfit_kind(m) is None}
    targets = cast(dict[str, LinearLayer], fit)
    problems += _modules_to_save_problems(model, config, targets)
    problems += _kind_problems(config, matched)
    features = {name: in_out_features(module) for name, module in targets.items()}
    problems += _tile_problems(config.vector_length, features)
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in targets.values())
    left_out = _reasons_to_leave_out(config, named, targets, head)
    return Examination(config, targets, left_out, tuple(problems), tuple(dropped))


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by name, without the root and without the insides of adapters."""
    named: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name and not name.startswith(inside):
            named[name] = module
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside += (name + ".",)
    return named


def linear_modules(model: nn.Module) -> dict[str, LinearLayer]:
    """Every nn.Linear and Conv1D by full name, unwrapped, output heads included."""
    unwrapped = {name: _unwrapped(module) for name, module in own_modules(model).items()}
    return {name: module for name, module in unwrapped.items() if isinstance(module, LinearLayer)}


def vector_lengths(modules: Iterable[LinearLayer]) -> list[int]:
    """The vector lengths, ascending, that divide all input and output sizes of these layers."""
    return _common_divisors(in_out_features(module) for module in modules)


def _common_divisors(features: Iterable[tuple[int, int]]) -> list[int]:
    common = math.gcd(*(size for sizes in features for size in sizes))
    return [length for length in range(1, common + 1) if common % length == 0]


def modules_to_save(model: nn.Module, config: VBLoRAConfig) -> dict[str, nn.Module]:
    """The modules that PEFT will copy, train and store whole, by full name."""
    endings = tuple(config.modules_to_save or ())
    inside: tuple[str, ...] = ()
    saved: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        wrapped = isinstance(module, AuxiliaryTrainingWrapper)
        if name.endswith(endings) and not name.startswith(inside):
            saved[name] = module.original_module if wrapped else module
        if wrapped or name in saved:
            inside += (name + ".",)
    return saved


def head_stored_whole(model: nn.Module, config: VBLoRAConfig) -> nn.Module | None:
    """The output head, if PEFT stores its base layer too since the config adapts it by that name.

    That is a weight (vocabulary, hidden size), far larger than the adapter; it is left out by
    save_pretrained(..., save_embedding_layers=False).

    Args:
        model: the base model, adapted already or not.
        config: with target_modules filled in.
    """
    wanted = config.target_modules or ()
    if isinstance(wanted, str):
        hit = [name for name in own_modules(model) if re.fullmatch(wanted, name)]
        named = {name.rpartition(".")[2] for name in hit}
    else:
        named = set(wanted)
    if not isinstance(model, PreTrainedModel) or named.isdisjoint(EMBEDDING_LAYER_NAMES):
        return None
    head = model.get_output_embeddings()
    return None if head is None else _unwrapped(head)


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, VBLoRALayer) else module


# --- names


def _add_heads(config: VBLoRAConfig) -> None:
    """Add to modules_to_save what PEFT adds for the config's task.

    PEFT's classes for token classification and question answering write it into the object that
    they were given, after the injection; the model keeps a copy, which has to know it too.
    """
    saved = config.modules_to_save or []
    missing = [name for name in HEADS_OF_TASKS.get(config.task_type or "", ()) if name not in saved]
    if missing:
        config.modules_to_save = [*saved, *missing]


def _is_all_linear(config: VBLoRAConfig) -> bool:
    wanted = config.target_modules
    return isinstance(wanted, str) and wanted.lower() == ALL_LINEAR


def _fill_in_targets(
    model: nn.Module,
    config: VBLoRAConfig,
    named: Mapping[str, nn.Module],
    head: nn.Module | None,
) -> list[Problem]:
    """Spell target_modules out, if it is 'all-linear' or left to PEFT's choice for the model."""
    if _is_all_linear(config):
        linears = {name for name, module in linear_modules(model).items() if module is not head}
        config.target_modules = linears
        if linears:
            return []
        message = f"target_modules={ALL_LINEAR!r}: {type(model).__name__} has no linear layer."
        return [Problem("target_modules", message)]
    if config.target_modules is not None:
        return []
    model_type = getattr(getattr(model, "config", None), "model_type", "custom")
    if model_type in DEFAULT_TARGETS:
        default = DEFAULT_TARGETS[model_type]
        # The default lists names for all sizes of an architecture; this model may lack some.
        config.target_modules = (
            default if isinstance(default, str) else {n for n in default if _hits(n, named)}
        )
        return []
    config.target_modules = set()
    message = (
        f"target_modules isn't given, and there is no default for {type(model).__name__} "
        f"(model_type {model_type!r}). {_endings_hint(named)}"
    )
    return [Problem("target_modules", message, ALL_LINEAR if _endings(named) else None)]


def _output_head(model: nn.Module, config: VBLoRAConfig) -> nn.Module | None:
    """The layer that 'all-linear' leaves out, as in PEFT: the one that makes the predictions."""
    if not isinstance(model, PreTrainedModel):
        return None
    head = model.get_output_embeddings()
    if head is None and config.task_type == "SEQ_CLS":
        heads = (getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES)
        head = next((module for module in heads if module is not None), None)
    return None if head is None else _unwrapped(head)


def _hits(name: str, named: Iterable[str]) -> bool:
    """Whether a name of a list of module names, full or only its end, is in the model."""
    return name in named or any(full.endswith(f".{name}") for full in named)


def _dead_names(
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
            near = [wanted] if _hits(wanted, named) else _near(wanted, named)
            better = near
            message = (
                f"{field}: {wanted!r} matches the whole name of no module of {kind}. A string is "
                "a regular expression; to give a name or its end, put it in a list. "
            )
            hint = f"Did you mean {near!r}?"
        else:
            dead = sorted(name for name in wanted or () if not _hits(name, named))
            if not dead:
                continue
            near = [near for name in dead for near in _near(name, named)]
            better = sorted({*wanted, *near} - set(dead))
            message = f"{field}: {', '.join(map(repr, dead))} names no module of {kind}. "
            hint = f"Did you mean {_listed(map(repr, near))}?"
        message += hint if near else _endings_hint(named)
        problems.append(Problem(field, message, better or None))
    return problems


def _drop_dead_names(
    config: VBLoRAConfig, named: Mapping[str, nn.Module], in_vain: Iterable[Problem]
) -> tuple[list[Problem], list[Problem]]:
    """Let a config do without the names it gives in vain: (dropped, still a problem)."""
    dropped: list[Problem] = []
    left: list[Problem] = []
    for problem in in_vain:
        if problem.field in ("target_modules", "exclude_modules"):
            alive = _alive(getattr(config, problem.field), named)
            if problem.field == "target_modules" and not alive:
                left.append(problem)
                continue
            setattr(config, problem.field, alive)
        dropped.append(problem)
    return dropped, left


def _alive(wanted: set[str] | str, named: Mapping[str, nn.Module]) -> set[str] | str | None:
    """What of a field with module names matches a module; None if nothing does."""
    if isinstance(wanted, str):
        return wanted if any(re.fullmatch(wanted, name) for name in named) else None
    return {name for name in wanted if _hits(name, named)} or None


def _near(wrong: str, named: Mapping[str, nn.Module]) -> list[str]:
    """The module name most like a wrong one, in a list of one; empty if none is like it."""
    endings = _endings(named)
    last = wrong.rpartition(".")[2]
    near = difflib.get_close_matches(wrong, [*endings, *named], n=1)
    near = near or difflib.get_close_matches(last, endings, n=1)
    return near or [ending for ending in endings if last and last in ending][:1]


def _endings(named: Mapping[str, nn.Module]) -> list[str]:
    """Last parts of the names of the linear layers: q_proj, v_proj, ..."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in named.items()
            if isinstance(_unwrapped(module), LinearLayer)
        }
    )


def _endings_hint(named: Mapping[str, nn.Module]) -> str:
    endings = _endings(named)
    if not endings:
        return "It has no linear layer at all."
    return f"The names of its linear layers end in: {_listed(endings)}."


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _nothing_left(config: VBLoRAConfig, named: Mapping[str, nn.Module]) -> Problem:
    filters = {
        field: getattr(config, field)
        for field in ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
        if getattr(config, field) not in (None, set(), [], "")
    }
    if not filters:
        return Problem(
            "target_modules",
            f"target_modules={config.target_modules!r} matches no module. {_endings_hint(named)}",
        )
    given = ", ".join(f"{field}={value!r}" for field, value in filters.items())
    return Problem(
        next(iter(filters)),
        f"target_modules names modules of this model, but {given} leaves none of them.",
    )


# --- layer numbers


def _layer_number(name: str, patterns: list[str]) -> int | None:
    """Which layer a module is in, as PEFT reads it from the name; None if in none."""
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(?P<number>\d+)\.", name)
    else:
        matches = (re.match(rf"(?:^|.*?\.){p}\.(?P<number>\d+)\.", name) for p in patterns)
        match = next((match for match in matches if match), None)
    number = match and match.group("number")
    return None if number is None else int(number)


def _layer_problems(config: VBLoRAConfig, named: Mapping[str, nn.Module]) -> list[Problem]:
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
        return [Problem("target_modules", message, _endings(named) or None)]
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
    # PEFT adapts a module that is given by its full name, whatever layer it is in.
    elsewhere = [
        name
        for name in named
        if name in (config.target_modules or ()) and _layer_number(name, patterns) not in asked
    ]
    if elsewhere:
        message = (
            f"{field}={wanted!r}: has no effect on modules given by their full names, but "
            f"target_modules has {_listed(elsewhere, 4)}, in another layer; leave it out."
        )
        rest = sorted(set(config.target_modules or ()) - set(elsewhere))
        return [Problem("target_modules", message, rest or None, tuple(elsewhere))]
    return []


def layer_lists(named: Iterable[str]) -> list[str]:
    """Names of the lists whose members are numbered: 'layers' for 'model.layers.0'."""
    found = (re.search(r"(?:^|\.)([^.]+)\.\d+\.", name) for name in named)
    return list(dict.fromkeys(match.group(1) for match in found if match))


def _dead_pattern(dead: str, patterns: list[str], named: Iterable[str]) -> Problem:
    lists = layer_lists(named)
    near = difflib.get_close_matches(dead, lists, n=1) or lists[:1]
    hint = f"Did you mean {near[0]!r}?" if near else "It has no numbered layers."
    message = f"layers_pattern: {dead!r} names no list of layers of this model. {hint}"
    better = list(dict.fromkeys(near[0] if p == dead else p for p in patterns)) if near else []
    return Problem("layers_pattern", message, (better[0] if len(better) == 1 else better) or None)


# --- modules


def _unfit_kind(module: nn.Module) -> str | None:
    """Why a module can't be adapted whatever its size; None if it can."""
    layer = _unwrapped(module)
    kind = type(layer).__name__
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight and never calls it"
    if isinstance(layer, BaseTunerLayer):
        return f"carries another PEFT adapter, {kind}; call unload() first"
    return None if isinstance(layer, LinearLayer) else kind


def _kind_problems(config: VBLoRAConfig, matched: Mapping[str, nn.Module]) -> list[Problem]:
    """Modules that are named, but are no linear layers that get called."""
    unfit: dict[str, str] = {}
    better: set[str] = set()
    for name, module in matched.items():
        why = _unfit_kind(module)
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
    for problem in _tile_problems(vector_length, features):
        raise TargetError(problem.message)


def _tile_problems(length: int, features: Mapping[str, tuple[int, int]]) -> list[Problem]:
    misfits = [name for name, sizes in features.items() if any(size % length for size in sizes)]
    if not misfits:
        return []
    listed = _listed((f"{n} ({features[n][0]} -> {features[n][1]})" for n in misfits), 6)
    fitting = _common_divisors(features.values())
    nearest = min(fitting, key=lambda fit: abs(fit - length))
    message = (
        f"vector_length={length} doesn't divide the sizes of {len(misfits)} of {len(features)} "
        f"adapted layers: {listed}. Lengths that divide all of them: "
        f"{', '.join(map(str, fitting))}; the nearest is {nearest}."
    )
    return [Problem("vector_length", message, nearest, tuple(misfits))]


def _modules_to_save_problems(
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
            near = difflib.get_close_matches(ending, children, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            message = f"{field}: {ending!r} names no module of {type(model).__name__}.{hint}"
            problems.append(Problem(field, message, [*others, *near] or None))
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


# --- what is left alone


def _reasons_to_leave_out(
    config: VBLoRAConfig,
    named: Mapping[str, nn.Module],
    targets: Mapping[str, LinearLayer],
    head: nn.Module | None,
) -> dict[str, str]:
    """Why each module with a weight matrix that isn't adapted is left as it is."""
    # The config with one filter at a time, to ask PEFT's own matching which of them it was.
    anywhere = copy.deepcopy(config)
    anywhere.exclude_modules = anywhere.modules_to_save = None
    anywhere.layers_to_transform = anywhere.layers_pattern = None
    saved = copy.deepcopy(anywhere)
    saved.target_modules = r".*"
    saved.modules_to_save = config.modules_to_save
    included = copy.deepcopy(anywhere)
    included.exclude_modules = config.exclude_modules
    reasons = {}
    for name, module in named.items():
        layer = _unwrapped(module)
        has_matrix = any(p.dim() > 1 for p in layer.parameters(recurse=False))
        if name in targets or not (has_matrix or isinstance(layer, LinearLayer)):
            continue
        unfit = _unfit_kind(module)
        if not check_target_module_exists(saved, name):
            reasons[name] = "trained whole (modules_to_save)"
        elif unfit:
            is_kind = unfit == type(layer).__name__
            reasons[name] = "kind can't be adapted" if is_kind else f"can't be adapted: {unfit}"
        elif layer is head:
            reasons[name] = "output head"
        elif not check_target_module_exists(anywhere, name):
            reasons[name] = "not named"
        elif not check_target_module_exists(included, name):
            reasons[name] = "excluded (exclude_modules)"
        else:
            reasons[name] = "other layer (layers_to_transform)"
    return reasons
