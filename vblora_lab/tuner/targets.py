"""Which modules of a model a config names, and whether they can be adapted. Touches nothing.

Names are matched by PEFT's own function, so a config means the same here and there. What differs
is that every mismatch is found before anything is injected, and is explained (see `problems`):
`match_targets` collects the problems, and `resolve` raises them.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from vblora_lab.errors import TargetError
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig
from vblora_lab.tuner.modules import linear_modules, output_head, own_modules, unwrapped
from vblora_lab.tuner.omissions import experts_left_out, untrained_heads
from vblora_lab.tuner.patterns import check_takes_no_time
from vblora_lab.tuner.problems import (
    HEADS_OF_TASKS,
    Problem,
    dead_names,
    endings,
    endings_hint,
    is_named,
    kind_problems,
    layer_problems,
    modules_to_save_problems,
    nothing_left,
    tile_problems,
    unfit_kind,
)
from vblora_lab.tuner.wrapped import LinearLayer, in_out_features

DEFAULT_TARGETS = TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING  # PEFT's, by model_type


@dataclass(frozen=True)
class TargetMatch:
    """What `match_targets` finds.

    Attributes:
        config: a copy with target_modules, fan_in_fan_out and the heads of its task filled in.
        targets: the linear layers that the config names, unwrapped, by full name in the order of
            the model's modules; those that vector_length doesn't divide are among them.
        left_out: why each other module with a weight matrix isn't adapted, by full name.
        problems: empty if the config fits.
        dropped: what an adapter that is loaded names in vain; no problem, but worth a warning.
        cautions: what is neither trained nor adapted though one might expect it.
    """

    config: VBLoRAConfig
    targets: dict[str, LinearLayer]
    left_out: dict[str, str]
    problems: tuple[Problem, ...]
    dropped: tuple[Problem, ...]
    cautions: tuple[Problem, ...]


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
    found = match_targets(model, config)
    expected = () if config.inference_mode else found.cautions
    for problem in (*found.dropped, *expected):
        warnings.warn(problem.message, stacklevel=2)
    if found.problems:
        raise TargetError(" ".join(problem.message for problem in found.problems))
    return found.config, found.targets


def match_targets(model: nn.Module, config: VBLoRAConfig) -> TargetMatch:
    """Compare a config with a model, and collect what doesn't fit instead of raising it.

    Args:
        model: the base model, adapted already or not; parameters may be on the meta device.
        config: never changed.

    Raises:
        ConfigError: a field was set to a value that can't be meant for any model.
        TargetError: the model is wrapped for compiling or parallel training, or cut (tp_plan).
    """
    config = copy.deepcopy(config)
    config.validate()
    _add_heads(config)
    _check_unwrapped(model)
    _check_whole_weights(model)
    named = own_modules(model)
    _check_expressions(config, named)
    all_linear = _is_all_linear(config)
    head = output_head(model, config) if all_linear else None
    problems = _fill_in_targets(model, config, named, head)
    in_vain = [*dead_names(model, config, named), *layer_problems(config, named)]
    dropped: list[Problem] = []
    if config.inference_mode:  # a stored adapter, in which PEFT let names in vain pass
        dropped, in_vain = _drop_dead_names(config, named, in_vain)
    problems += in_vain

    matched = {n: m for n, m in named.items() if check_target_module_exists(config, n)}
    if not matched and not problems:
        problems.append(nothing_left(config, named))
    fit = {n: unwrapped(m) for n, m in matched.items() if unfit_kind(m) is None}
    targets = cast(dict[str, LinearLayer], fit)
    problems += modules_to_save_problems(model, config, targets)
    problems += kind_problems(config, matched)
    features = {name: in_out_features(module) for name, module in targets.items()}
    problems += tile_problems(config.vector_length, features)
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in targets.values())
    left_out = _reasons_to_leave_out(config, named, targets, head)
    cautions = (*untrained_heads(model, config), *(experts_left_out(named) if all_linear else ()))
    return TargetMatch(config, targets, left_out, tuple(problems), tuple(dropped), cautions)


def _check_unwrapped(model: nn.Module) -> None:
    """Raise `TargetError` for what only wraps a model, and changes the names of its modules."""
    if "_orig_mod" in model._modules:
        attribute, what = "_orig_mod", "torch.compile"
    elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        attribute, what = "module", "parallel training"
    else:
        return
    raise TargetError(
        f"model is a {type(model).__name__}, which wraps a model for {what}: an adapter in it "
        "would be stored under names that fit no other model. Adapt the model inside, "
        f"model.{attribute}, and wrap the result."
    )


def _check_whole_weights(model: nn.Module) -> None:
    """Raise `TargetError` for weights of which each process has a part (tensor parallel)."""
    size = getattr(model, "_tp_size", None) or 1
    if size > 1 or any(hasattr(module, "_hf_tp_plan") for module in model.modules()):
        raise TargetError(
            "model is split over several GPUs within its layers (tensor parallel, tp_plan), and "
            "sub-vectors are cut from whole rows and columns. Load it without tp_plan: "
            "device_map='auto' puts whole layers on the GPUs, and DDP or FSDP share batches."
        )


def _check_expressions(config: VBLoRAConfig, named: Mapping[str, nn.Module]) -> None:
    """Raise `ConfigError` for an expression that would take for ever on these names."""
    for field in ("target_modules", "exclude_modules"):
        wanted = getattr(config, field)
        if isinstance(wanted, str) and not _is_all_linear(config):
            check_takes_no_time(field, wanted, named)
    patterns = config.layers_pattern or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        check_takes_no_time("layers_pattern", rf".*\.{pattern}\.(\d+)\.", named)


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
            default if isinstance(default, str) else {n for n in default if is_named(n, named)}
        )
        return []
    config.target_modules = set()
    message = (
        f"target_modules isn't given, and there is no default for {type(model).__name__} "
        f"(model_type {model_type!r}). {endings_hint(named)}"
    )
    if not endings(named):
        return [Problem("target_modules", message)]
    message += f" Name some of them, or say {ALL_LINEAR!r}."
    return [Problem("target_modules", message, ALL_LINEAR)]


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
    return {name for name in wanted if is_named(name, named)} or None


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
        layer = unwrapped(module)
        has_matrix = any(p.dim() > 1 for p in layer.parameters(recurse=False))
        if name in targets or not (has_matrix or isinstance(layer, LinearLayer)):
            continue
        unfit = unfit_kind(module)
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
