"""Reading adapters of both kinds, from a model or a folder: their matrices A and B, and the rest.

The sizes of the adapted layers follow from the shapes in a file, so no base model is needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from vblora_lab.admixture import low_rank_matrices
from vblora_lab.convert.factors import Factors
from vblora_lab.errors import CheckpointError, ConfigError
from vblora_lab.files import sha256_of
from vblora_lab.tuner import folders, formats
from vblora_lab.tuner.banks import FINGERPRINT_NAME, check_bank_fits, find_bank, read_fingerprint
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.eight_bits import INT8_NAME
from vblora_lab.tuner.formats import BANK_KEY, LAYER_PREFIX, LOGITS
from vblora_lab.tuner.loading import Bank, given_bank
from vblora_lab.tuner.peft import using
from vblora_lab.tuner.saving import full_state_dict

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
Source = nn.Module | str | os.PathLike[str]
# Fields of LoraConfig that make of LoRA something else than base(x) + scaling * B A x.
OTHER_THAN_LORA = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in B",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained token embeddings",
}
# Initialisations that change the base model's weights: the file alone isn't the whole update.
INITIALISATIONS_OF_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def vblora_factors(tensors: Mapping[str, Tensor], config: VBLoRAConfig) -> dict[str, Factors]:
    """A (r, in_features) and B (out_features, r) of each adapted layer, from an adapter's tensors.

    Args:
        tensors: of a file or `get_peft_model_state_dict`, in either format.
        config: of the adapter.

    Returns:
        The matrices by the layer's name, in float32 or finer.
    """
    tensors = formats.unpacked(tensors, config.num_vectors)
    bank = _float32_at_least(tensors[BANK_KEY])
    factors = {}
    for key in tensors:
        if key.endswith(f".{LOGITS[0]}"):
            stem = key.removesuffix(LOGITS[0])
            logits_A, logits_B = (_float32_at_least(tensors[stem + name]) for name in LOGITS)
            name = stem.removeprefix(LAYER_PREFIX).removesuffix(".")
            factors[name] = low_rank_matrices(logits_A, logits_B, bank, config.topk)
    return factors


def _float32_at_least(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float32))


def is_vblora_key(key: str) -> bool:
    return key == BANK_KEY or any(f".{name}" in key for name in LOGITS)


def read_model(model: nn.Module, adapter_name: str) -> tuple[VBLoRAConfig, dict[str, Tensor]]:
    """The config and all that a file with all logits would hold, from a PeftModel."""
    model = peft_model(model, adapter_name)
    config = as_vblora_config(model.peft_config[adapter_name])
    with using():
        tensors = get_peft_model_state_dict(model, adapter_name=adapter_name)
    # Again, for the logits themselves: the top-k format would round them to weights.
    config.save_only_topk_weights = False
    tensors = {key: tensor for key, tensor in tensors.items() if not is_vblora_key(key)}
    tensors |= full_state_dict(model, adapter_name)
    if any(tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError(
            f"adapter {adapter_name!r} has no numbers, only shapes (device 'meta'); load its "
            "weights, or export from its folder."
        )
    return config, tensors


def peft_model(model: nn.Module, adapter_name: str) -> PeftModel:
    """The PeftModel that this is, if it has an adapter of that name."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    if not isinstance(model, PeftModel):
        raise CheckpointError(
            f"a {type(model).__name__} is no PeftModel; give what get_peft_model or "
            "from_pretrained returned, or an adapter's folder."
        )
    if adapter_name not in model.peft_config:
        there = ", ".join(map(repr, model.peft_config))
        raise ConfigError(f"adapter_name={adapter_name!r}: the model has {there}.")
    return model


def subfolder(folder: str | os.PathLike[str], adapter_name: str) -> Path:
    return Path(folder) if adapter_name == "default" else Path(folder) / adapter_name


def read_folder(
    folder: Path,
    bank: Bank | None = None,
    known: Callable[[str], Tensor | None] = lambda fingerprint: None,
) -> tuple[VBLoRAConfig, dict[str, Tensor]]:
    """The config and tensors of a stored VB-LoRA adapter, once they are known to fit together.

    Args:
        folder: of the adapter.
        bank: the one that it needs, if it was stored without: a folder, a Hub id or the tensor.
        known: gives a bank by its fingerprint, for a folder without one if `bank` isn't given.

    Raises:
        CheckpointError: it is damaged, or no VB-LoRA adapter; or its bank isn't given, or another.
        ConfigError: a bank is given that isn't needed, or one of another size.
    """
    config = folders.read_config(folder)
    tensors = folders.read_tensors(folder)
    if BANK_KEY not in tensors:
        tensors[BANK_KEY] = _bank_beside(folder, bank, known)
        check_bank_fits(config, tensors[BANK_KEY], "its bank")
    elif bank is not None:
        raise ConfigError(f"bank: {folder} has a bank of its own; leave bank= out.")
    check_stored(config, tensors, str(folder))
    return config, tensors


def check_stored(config: VBLoRAConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise `CheckpointError` unless these tensors are what a config stores for some model.

    Args:
        config: of a VB-LoRA adapter.
        tensors: of its file, in either format; the bank may be missing.
        where: names the file in the message.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    features = features_of(shapes, config.vector_length)
    others = {key: tensor for key, tensor in tensors.items() if "vblora_" not in key}
    formats.check_tensors(tensors, config, features, others, (), where)


def _bank_beside(folder: Path, bank: Bank | None, known: Callable[[str], Tensor | None]) -> Tensor:
    """The bank of an adapter that was stored without it."""
    needed = read_fingerprint(folder)
    if bank is not None or needed is None:
        return find_bank(str(folder), None, given_bank(bank))
    found = known(needed)
    if found is None:
        raise CheckpointError(
            f"{folder} was stored without its bank (SHA-256 {needed[:12]}...). Give bank=, the "
            "folder of an adapter that has it, or the tensor."
        )
    return found


def folder_digest(folder: Path) -> str:
    """The SHA-256 of what is in an adapter's folder, and so of which bank it needs.

    It is that of the lines "NAME SHA256" of the files that are there of config, weights (PEFT's, or
    in 8 bits) and `vblora_bank.json`. Raises `OSError`.
    """
    names = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, INT8_NAME, FINGERPRINT_NAME)
    there = [folder / name for name in names if (folder / name).is_file()]
    lines = "".join(f"{path.name} {sha256_of(path)}\n" for path in there)
    return hashlib.sha256(lines.encode()).hexdigest()


def features_of(
    shapes: Mapping[str, formats.Shape], vector_length: int
) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of each layer of a file, from the tiles that its logits have."""
    tiles: dict[str, list[int]] = {}
    for key, shape in shapes.items():
        for side, logits in enumerate(LOGITS):
            stem, found, _ = key.removeprefix(LAYER_PREFIX).partition(f".{logits}")
            if found:
                # A is (r, in_tiles, ...), B (out_tiles, r, ...).
                tiles.setdefault(stem, [0, 0])[side] = shape[1 - side] if len(shape) > 1 else 0
    return {
        name: (ins * vector_length, outs * vector_length) for name, (ins, outs) in tiles.items()
    }


def shared_fields(config: PeftConfig, names: Iterable[str]) -> dict[str, Any]:
    """Fields that LoraConfig and VBLoRAConfig both have, and that mean the same in both.

    PEFT matches target_modules by one function for all methods, so the very same fields adapt the
    very same modules. Only PEFT's default and "all-linear" depend on the method; they are spelt
    out.
    """
    fields = (
        "target_modules exclude_modules layers_to_transform layers_pattern modules_to_save "
        "fan_in_fan_out task_type base_model_name_or_path revision auto_mapping"
    ).split()
    shared = {name: getattr(config, name) for name in fields}
    if shared["target_modules"] in (None, ALL_LINEAR):
        shared.update(target_modules=sorted(names), exclude_modules=None)
        shared.update(layers_to_transform=None, layers_pattern=None)
    return {**shared, "inference_mode": True}


def read_lora(
    source: Source, adapter_name: str
) -> tuple[LoraConfig, dict[str, Factors], dict[str, Tensor]]:
    """Config, (A, scaling * B) by module, and the other tensors of a LoRA adapter."""
    if isinstance(source, nn.Module):
        model = peft_model(source, adapter_name)
        config = model.peft_config[adapter_name]
        where = f"adapter {adapter_name!r}"
        _check_is_lora(config, where)
        tensors = get_peft_model_state_dict(model, adapter_name=adapter_name)
    else:
        folder = subfolder(source, adapter_name)
        where = str(folder)
        folders.read_fields(folder)  # says what is wrong with the config
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (ValueError, TypeError, KeyError) as error:  # whatever its own checks raise
            raise CheckpointError(f"{folder / CONFIG_NAME} can't be read: {error}.") from error
        _check_is_lora(config, where)
        tensors = folders.read_tensors(folder)
    config = cast(LoraConfig, config)
    factors, others = {}, {}
    for key, tensor in tensors.items():
        stem = key.removesuffix(LORA_A)
        if "lora_" not in key:
            others[key] = tensor
        elif not key.endswith((LORA_A, LORA_B)) or tensor.ndim != 2:
            raise CheckpointError(
                f"{where} holds {key} of shape {tuple(tensor.shape)}, which is no LoRA of a linear "
                "layer; VB-LoRA adapts nn.Linear and Conv1D alone."
            )
        elif key.endswith(LORA_A):
            B = tensors.get(stem + LORA_B)
            if B is None or B.shape[1:] != tensor.shape[:1]:
                raise CheckpointError(f"{where} has no lora_B that belongs to {key}.")
            name = stem.removeprefix(LAYER_PREFIX)
            scaling = _scaling(config, name, rank=len(tensor))
            factors[name] = tensor.detach().float().cpu(), scaling * B.detach().float().cpu()
    if not factors:
        raise CheckpointError(f"{where} holds no LoRA matrices.")
    if not any(A.any() and B.any() for A, B in factors.values()):
        raise CheckpointError(f"{where} updates nothing: it isn't trained, all A or B are zero.")
    return config, factors, others


def _check_is_lora(config: PeftConfig, where: str) -> None:
    if config.peft_type != PeftType.LORA:
        raise CheckpointError(f"{where} is no LoRA adapter, but one of {config.peft_type!r}.")
    for name, method in OTHER_THAN_LORA.items():
        value = getattr(config, name, None)
        if value:
            raise CheckpointError(
                f"{where} has {name}={value!r}: {method} does more than add B A, so VB-LoRA can't "
                "stand for it."
            )
    start = cast(LoraConfig, config).init_lora_weights
    if isinstance(start, str) and start.lower().startswith(INITIALISATIONS_OF_THE_BASE):
        raise CheckpointError(
            f"{where} has init_lora_weights={start!r}, which changed the weights of the base model "
            "too; save it with path_initial_model_for_weight_conversion first, which makes plain "
            "LoRA of it."
        )


def _scaling(config: LoraConfig, name: str, rank: int) -> float:
    """What LoRA multiplies B A with: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)
