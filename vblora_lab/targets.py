"""Which modules of a model a config names, and whether they can be adapted. Touches nothing.

Names are matched by PEFT's own function, so a config means the same here and there. What differs
is that every mismatch is found before anything is injected, and is explained.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
import warnings
from collections.abc import Iterable, Mapping

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from vblora_lab.config import ALL_LINEAR, VBLoRAConfig
from vblora_lab.errors import TargetError
from vblora_lab.layers import LinearLayer, VBLoRALayer, in_out_features

# PEFT puts these in modules_to_save for classification tasks, whichever of them the model has.
HEADS_ADDED_BY_TASK = (*SEQ_CLS_HEAD_NAMES, "qa_outputs")
CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


def resolve(model: nn.Module, config: VBLoRAConfig) -> tuple[VBLoRAConfig, dict[str, LinearLayer]]:
    """Find the modules that a config adapts.

    Args:
        model: the base model, adapted already or not.
        config: never changed.

    Returns:
        A copy of the config with target_modules and fan_in_fan_out filled in, and the modules by
        full name in the order of `model.named_modules()`: nn.Linear or Conv1D, unwrapped.

    Raises:
        ConfigError: a field was set to a value that can't be meant.
        TargetError: a name matches nothing, a match is no linear layer, or vector_length doesn't
            divide its sizes. The message lists every module concerned, and what would fit.
    """
    config = copy.deepcopy(config)
    config.validate()
    named = own_modules(model)
    config.target_modules = _explicit_targets(model, config, named)
    _check_every_name_is_used(config, named)
    _check_modules_to_save(model, config)
    matched = {n: m for n, m in named.items() if check_target_module_exists(config, n)}
    if not matched:
        raise TargetError(_nothing_left(config, named))
    targets = _linear_layers(matched)
    features = {name: in_out_features(module) for name, module in targets.items()}
    check_tiles(config.vector_length, features)
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in targets.values())
    return config, targets


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by name, without the root and without the insides of adapters."""
    named: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name and not name.startswith(inside):
            named[name] = module
        if isinstance(module, BaseTunerLayer):
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


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, VBLoRALayer) else module


def _explicit_targets(
    model: nn.Module, config: VBLoRAConfig, named: Mapping[str, nn.Module]
) -> list[str] | set[str] | str:
    """target_modules with PEFT's choice for the architecture and 'all-linear' spelt out."""
    wanted = config.target_modules
    if wanted is None:
        model_type = getattr(getattr(model, "config", None), "model_type", "custom")
        if model_type not in DEFAULT_TARGETS:
            raise TargetError(
                f"target_modules isn't given, and there is no default for {type(model).__name__} "
                f"(model_type {model_type!r}). {_endings_hint(named)}"
            )
        default = DEFAULT_TARGETS[model_type]
        # The default lists names for all sizes of an architecture; this model may lack some.
        return default if isinstance(default, str) else {n for n in default if _hits(n, named)}
    if not isinstance(wanted, str) or wanted.lower() != ALL_LINEAR:
        return wanted
    head = _output_head(model, config)
    return {name for name, module in linear_modules(model).items() if module is not head}


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
    return any(full == name or full.endswith(f".{name}") for full in named)


def _check_every_name_is_used(config: VBLoRAConfig, named: Mapping[str, nn.Module]) -> None:
    """Refuse a name that matches nothing; in a stored adapter, which PEFT let pass, drop it."""
    for field in ("target_modules", "exclude_modules"):
        wanted = getattr(config, field)
        if isinstance(wanted, str):
            dead = [] if any(re.fullmatch(wanted, name) for name in named) else [wanted]
        else:
            dead = sorted(name for name in wanted or () if not _hits(name, named))
        if not dead:
            continue
        message = f"{field}: {', '.join(map(repr, dead))} " + (
            "matches the whole name of no module. A string is a regular expression; to give a "
            "name or its end, put it in a list. "
            if isinstance(wanted, str)
            else "names no module of this model. "
        )
        message += _near_hint(dead[0], named) or _endings_hint(named)
        alive = set() if isinstance(wanted, str) else set(wanted) - set(dead)
        if not config.inference_mode or (field == "target_modules" and not alive):
            raise TargetError(message)
        warnings.warn(message, stacklevel=2)
        setattr(config, field, alive or None)


def _near_hint(wrong: str, named: Mapping[str, nn.Module]) -> str:
    """'Did you mean ...?' for the module name most like a wrong one, else ''."""
    endings = _endings(named)
    last = wrong.rpartition(".")[2]
    near = difflib.get_close_matches(wrong, [*endings, *named], n=1)
    near = near or difflib.get_close_matches(last, endings, n=1)
    near = near or [ending for ending in endings if last and last in ending][:1]
    return f"Did you mean {near[0]!r}?" if near else ""


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


def _nothing_left(config: VBLoRAConfig, named: Mapping[str, nn.Module]) -> str:
    filters = {
        field: getattr(config, field)
        for field in ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
        if getattr(config, field)
    }
    if not filters:
        return f"target_modules={config.target_modules!r} matches no module. {_endings_hint(named)}"
    given = ", ".join(f"{field}={value!r}" for field, value in filters.items())
    return f"target_modules names modules of this model, but {given} leaves none of them."


def _linear_layers(matched: Mapping[str, nn.Module]) -> dict[str, LinearLayer]:
    """The matched modules unwrapped, if each of them is a linear layer that gets called."""
    layers: dict[str, LinearLayer] = {}
    problems = []
    for name, module in matched.items():
        layer = _unwrapped(module)
        kind = type(layer).__name__
        if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
            problems.append(f"{name} (nn.MultiheadAttention reads its weight and never calls it)")
        elif isinstance(layer, BaseTunerLayer):
            problems.append(f"{name} (carries another PEFT adapter, {kind}; call unload() first)")
        elif isinstance(layer, LinearLayer):
            layers[name] = layer
        else:
            within = linear_modules(layer)
            inside = f"; it contains {_listed(within, 4)}" if within else ""
            problems.append(f"{name} ({kind}{inside})")
    if problems:
        raise TargetError(
            "only torch.nn.Linear and transformers Conv1D can be adapted, but target_modules "
            f"matches {_listed(problems, 6)}."
        )
    return layers


def check_tiles(vector_length: int, features: Mapping[str, tuple[int, int]]) -> None:
    """Check that vector_length divides the sizes of all layers that are to be adapted.

    Args:
        vector_length: of the bank.
        features: (in_features, out_features) of each layer, by full name.

    Raises:
        TargetError: lists the layers that can't be cut, and the lengths that would do.
    """
    misfits = [
        f"{name} ({sizes[0]} -> {sizes[1]})"
        for name, sizes in features.items()
        if any(size % vector_length for size in sizes)
    ]
    if not misfits:
        return
    fitting = _common_divisors(features.values())
    nearest = min(fitting, key=lambda fit: abs(fit - vector_length))
    raise TargetError(
        f"vector_length={vector_length} doesn't divide the sizes of {len(misfits)} of "
        f"{len(features)} adapted layers: {_listed(misfits, 6)}. Lengths that divide all of them: "
        f"{', '.join(map(str, fitting))}; the nearest is {nearest}."
    )


def _check_modules_to_save(model: nn.Module, config: VBLoRAConfig) -> None:
    every = dict(model.named_modules(remove_duplicate=False))
    for wanted in config.modules_to_save or ():
        found = {name: module for name, module in every.items() if name.endswith(wanted)}
        if not found and wanted not in HEADS_ADDED_BY_TASK:
            children = {name.rpartition(".")[2]: module for name, module in every.items()}
            near = difflib.get_close_matches(wanted, children, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TargetError(f"modules_to_save: {wanted!r} names no module of this model.{hint}")
        for name, module in found.items():
            if isinstance(module, CONTAINERS):
                raise TargetError(
                    f"modules_to_save: {name} is a {type(module).__name__}, which has no forward "
                    "of its own; name the modules in it."
                )
