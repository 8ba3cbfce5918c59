"""Several processes that train together, started by torchrun or ``accelerate launch``.

They share each batch. Only the first one writes files and emits events; what it decides, all do.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, reduce

from vblora_lab.errors import ConfigError

T = TypeVar("T")


ENGINES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # ACCELERATE_USE_... of each


def how_processes_train(environment: Mapping[str, str] = os.environ) -> str:
    """In how many processes a run trains, and which engine brings them together, in a phrase.

    To be called in all of them, before a model is loaded.

    Args:
        environment: as ``accelerate launch`` and torchrun set it.

    Raises:
        ConfigError: ``accelerate launch`` asks for what doesn't work here.
    """
    engine = next((name for name in ENGINES if _is_set(environment, f"ACCELERATE_USE_{name}")), "")
    if engine == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("distributed_type: DEEPSPEED needs DeepSpeed: pip install deepspeed")
    name = _NAMES[engine](environment)
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes == 1:
        return f"1 process ({state.device.type})"
    if engine and state.distributed_type == DistributedType.MULTI_CPU:
        raise ConfigError(
            f"{name} needs GPUs, and none is here: accelerate would average gradients (DDP) "
            "instead, and say nothing. Use distributed_type: MULTI_CPU."
        )
    return f"{state.num_processes} processes ({state.device.type}, {state.backend}), {name}"


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")


def _fsdp(environment: Mapping[str, str]) -> str:
    version = environment.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(
            f"fsdp_version: {version} doesn't work with VB-LoRA's shared bank; use fsdp_version: 2"
        )
    if _is_set(environment, "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading: true would draw the adapter in the first process "
            "alone; use fsdp_cpu_ram_efficient_loading: false"
        )
    return "FSDP2"


def _deepspeed(environment: Mapping[str, str]) -> str:
    stage: object = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if file := environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        stage = config.get("zero_optimization", {}).get("stage", 0)
    return f"DeepSpeed ZeRO-{stage}"


def _refused(_: Mapping[str, str]) -> str:
    raise ConfigError(
        "accelerate's Megatron-LM and parallelism_config cut layers themselves, which an adapted "
        "layer doesn't allow; use distributed_type: MULTI_GPU, FSDP or DEEPSPEED"
    )


_NAMES = {
    "": lambda _: "DDP",
    "FSDP": _fsdp,
    "DEEPSPEED": _deepspeed,
    "MEGATRON_LM": _refused,
    "PARALLELISM_CONFIG": _refused,
}


def is_first_process() -> bool:
    """Whether this process is the first, or the only one. torchrun and accelerate set its rank."""
    return os.environ.get("RANK", "0") == "0"


def in_any_process(flag: bool) -> bool:
    """Whether a flag is set in any process. All must call it."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=state.device)))


def sum_of_processes(number: torch.Tensor) -> torch.Tensor:
    """The sum of a number over all processes. All must call it."""
    total: torch.Tensor = reduce(number, "sum")
    return total


def leave_the_others() -> None:
    """Leave the group of processes, if there is one: at the very end, after the last of them."""
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()


def of_first_process(value: T) -> T:
    """What the first process passes, in all of them. All must call it."""
    if PartialState().num_processes > 1:
        (value,) = broadcast_object_list([value])
    return value
