"""Conversion between VB-LoRA adapters and LoRA adapters, as files. No base model is needed.

`export_lora` writes the A and B that a bank and logits make: LoRA with the same update, exactly.
`compress_lora` goes back: it looks for a bank and logits that make a given LoRA's update, as well
as a bank of that size can.

Both read and write PEFT's files. The sizes of the adapted layers follow from the shapes in them,
so that an adapter of a model that doesn't fit into this machine's memory can be converted on it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn

from vblora_lab.admixture import low_rank_matrices
from vblora_lab.convert.factors import BALANCES, Errors, Factors, SubVectorProblem, errors
from vblora_lab.errors import CheckpointError, ConfigError
from vblora_lab.tuner import formats
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.formats import BANK_KEY, LAYER_PREFIX, LOGITS
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.peft import using
from vblora_lab.tuner.targets import check_tiles

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


# --- VB-LoRA -> LoRA


def export_lora(
    source: Source, path: str | os.PathLike[str], adapter_name: str = "default"
) -> Path:
    """Write a VB-LoRA adapter as a LoRA adapter with the same update, for engines that serve LoRA.

    A and B are mixed from bank and logits in float32 or finer and written as they are, with
    lora_alpha = r, so that LoRA's scaling is 1. Biases and modules_to_save come along.
    Stock PEFT loads the folder as a LoRA adapter for the same modules.

    (peft.convert_to_lora also makes LoRA of VB-LoRA. It takes each layer's B A apart by a singular
    value decomposition, for which it needs the model, and refuses trained biases; use it for a rank
    below the adapter's.)

    Args:
        source: a PeftModel with a VB-LoRA adapter, this package's or PEFT's own, merged or not; or
            the folder of a stored adapter of either format.
        path: the folder to write. One that holds an earlier export is replaced; it is written
            completely or not at all.
        adapter_name: which adapter of the model; of a folder, "default" is the folder itself and
            any other name a folder in it, as PEFT stores them.

    Returns:
        The path.

    Raises:
        CheckpointError: source is no VB-LoRA adapter, or path is a file or holds something else.
        ConfigError: the model has no such adapter, or it is one of another method.
    """
    folder = _free_folder(path, PeftType.LORA)
    if isinstance(source, nn.Module):
        config, tensors = _read_model(source, adapter_name)
    else:
        config, tensors = _read_folder(_subfolder(source, adapter_name))
    factors = vblora_factors(tensors, config)
    result = {key: tensor for key, tensor in tensors.items() if not _is_vblora(key)}
    for name, (A, B) in factors.items():
        result[f"{LAYER_PREFIX}{name}{LORA_A}"] = A
        result[f"{LAYER_PREFIX}{name}{LORA_B}"] = B
    lora_config = LoraConfig(
        r=config.r,
        lora_alpha=config.r,
        lora_dropout=config.vblora_dropout,
        bias=config.bias.replace("vblora_only", "lora_only"),  # type: ignore[arg-type]
        **_shared_fields(config, factors),
    )
    _write(folder, lora_config, result)
    return Path(path)


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


def _is_vblora(key: str) -> bool:
    return key == BANK_KEY or any(f".{name}" in key for name in LOGITS)


def _read_model(model: nn.Module, adapter_name: str) -> tuple[VBLoRAConfig, dict[str, Tensor]]:
    """The config and all that a file with all logits would hold, from a PeftModel."""
    model = _peft_model(model, adapter_name)
    config = as_vblora_config(model.peft_config[adapter_name])
    with using():
        tensors = get_peft_model_state_dict(model, adapter_name=adapter_name)
    # Again, for the logits themselves: the top-k format would round them to weights.
    config.save_only_topk_weights = False
    others = [name for name in model.peft_config if name != adapter_name]
    full = VBLoRAModel._get_adapter_state_dict(
        model, config, adapter_name, model.state_dict(), others
    )
    tensors = {key: tensor for key, tensor in tensors.items() if not _is_vblora(key)}
    for key, tensor in full.items():
        tensors[VBLoRAModel._remove_adapter_name_from_key(key, adapter_name)] = tensor
    if any(tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError(
            f"adapter {adapter_name!r} has no numbers, only shapes (device 'meta'); load its "
            "weights, or export from its folder."
        )
    return config, tensors


def _peft_model(model: nn.Module, adapter_name: str) -> PeftModel:
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


def _subfolder(folder: str | os.PathLike[str], adapter_name: str) -> Path:
    return Path(folder) if adapter_name == "default" else Path(folder) / adapter_name


def _read_folder(folder: Path) -> tuple[VBLoRAConfig, dict[str, Tensor]]:
    """The config and tensors of a stored VB-LoRA adapter, once they are known to fit together."""
    config = formats.read_config(folder)
    tensors = formats.read_tensors(folder)
    if BANK_KEY not in tensors:
        raise CheckpointError(
            f"{folder} holds no vector bank: it shares another adapter's. Load both, and export "
            "from the model or from what vblora_lab.save_with_bank writes."
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    features = _features(shapes, config.vector_length)
    others = {key: shape for key, shape in shapes.items() if "vblora_" not in key}
    formats.check_tensors(tensors, config, features, others, str(folder))
    return config, tensors


def _features(
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


def _shared_fields(config: PeftConfig, names: Iterable[str]) -> dict[str, Any]:
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


# --- LoRA -> VB-LoRA


@dataclass(frozen=True, eq=False)
class Compression:
    """What `compress_lora` found.

    Attributes:
        config: of the VB-LoRA adapter.
        tensors: of the adapter, by PEFT's keys: bank and all logits, float32, and whatever else the
            LoRA adapter holds.
        balance: how the factors were balanced (see `compress_lora`).
        errors: of each module by name, as the stored logits and bank give them.
        overall: the same over all modules.
        lora_bytes: of A and B in float32.
        full_bytes, topk_bytes: of the VB-LoRA adapter in both formats. Biases and modules_to_save,
            which both adapters hold alike, aren't counted.
    """

    config: VBLoRAConfig
    tensors: dict[str, Tensor] = field(repr=False)
    balance: str
    errors: dict[str, Errors] = field(repr=False)
    overall: Errors
    lora_bytes: int
    full_bytes: int
    topk_bytes: int

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the adapter in the format that `config.save_only_topk_weights` says.

        Args:
            path: the folder. One that holds a VB-LoRA adapter and nothing else is replaced.

        Raises:
            CheckpointError: path is a file or holds something else.
        """
        folder = _free_folder(path, PeftType.VBLORA)
        tensors = self.tensors
        if self.config.save_only_topk_weights:
            tensors = formats.packed(tensors, self.config.topk)
        _write(folder, self.config, tensors)
        return Path(path)

    def __str__(self) -> str:
        config = self.config
        worst = max(self.errors, key=lambda name: self.errors[name].update)
        lines = [
            f"VB-LoRA with num_vectors={config.num_vectors}, vector_length={config.vector_length}, "
            f"topk={config.topk}, r={config.r} on {len(self.errors)} modules",
            f"error of the updates {self.overall.update:.2%} (of A {self.overall.A:.2%}, of B "
            f"{self.overall.B:.2%}; factors balanced by {self.balance!r})",
            f"largest in {worst}: {self.errors[worst].update:.2%}",
            f"bytes: LoRA {self.lora_bytes:,}, VB-LoRA {self.full_bytes:,} with all logits "
            f"({self.full_bytes / self.lora_bytes:.0%}), {self.topk_bytes:,} with the top "
            f"{config.topk} ({self.topk_bytes / self.lora_bytes:.0%})",
        ]
        return "\n".join(lines)


def compress_lora(
    lora_adapter: Source,
    num_vectors: int = 256,
    vector_length: int = 256,
    topk: int = 2,
    path: str | os.PathLike[str] | None = None,
    *,
    adapter_name: str = "default",
    save_only_topk_weights: bool = False,
    balance: str = "auto",
    rounds: int = 40,
    steps: int = 200,
    seed: int = 0,
) -> Compression:
    """Fit a vector bank and logits to a LoRA adapter.

    First the factors are balanced: B A = (B M)(M^-1 A) for any invertible M, and a good M makes
    their sub-vectors easy to mix from one bank. Then bank and choices are fitted to the sub-vectors
    (see `fitting`). Last, bank and logits together descend the squared error of all updates,

        sum over modules of  | B' A' - scaling * B A |^2 ,

    by Adam through the admixture. Equal arguments give equal results. A LoRA has no reason to lie
    in the reach of a small bank: read `overall.update` before relying on the result, and train on
    from it (with all logits) if it is too large.

    Args:
        lora_adapter: the folder of a LoRA adapter in PEFT's format, or a PeftModel with one.
        num_vectors, vector_length, topk: of the bank, see `VBLoRAConfig`.
        path: where to write the adapter (see `Compression.save`); nowhere if not given.
        adapter_name: which adapter, as in `export_lora`.
        save_only_topk_weights: whether it is stored in the top-k format.
        balance: "none" takes A and scaling * B as they are (right for what `export_lora` wrote),
            "norms" gives each row of A and its column of B the same norm, "svd" makes them the
            singular vectors of B A, each times the root of the singular value. "auto" fits all
            three and goes on with the best, in three times the time.
        rounds: of fitting, at least 1.
        steps: of Adam; 0 leaves it out.
        seed: of the first bank.

    Returns:
        The adapter and how well it does. Modules of smaller rank than the others (rank_pattern) are
        brought to the largest rank by splitting components in equal parts, which changes nothing.

    Raises:
        CheckpointError: no trained LoRA adapter there, or one that does more than add B A (DoRA,
            LoRA on embeddings or convolutions, ...); or path is a file or holds something else.
        ConfigError: a number is out of range.
        TargetError: vector_length doesn't divide the sizes of the layers.
    """
    if path is not None:
        _free_folder(path, PeftType.VBLORA)
    if balance not in (*BALANCES, "auto"):
        allowed = ", ".join(map(repr, (*BALANCES, "auto")))
        raise ConfigError(f"balance={balance!r}: must be one of {allowed}.")
    for name, value, least in (("rounds", rounds, 1), ("steps", steps, 0)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r}: must be a whole number, at least {least}.")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed!r}: must be a whole number, at least 0 and below 2**63.")
    lora_config, factors, others = _read_lora(lora_adapter, adapter_name)
    config = VBLoRAConfig(
        r=max(len(A) for A, _ in factors.values()),
        num_vectors=num_vectors,
        vector_length=vector_length,
        topk=topk,
        save_only_topk_weights=save_only_topk_weights,
        vblora_dropout=lora_config.lora_dropout,
        bias=lora_config.bias.replace("lora_only", "vblora_only"),
        **_shared_fields(lora_config, factors),
    )
    features = {name: (A.shape[1], B.shape[0]) for name, (A, B) in factors.items()}
    check_tiles(config.vector_length, features)

    ways = list(BALANCES) if balance == "auto" else [balance]
    problems = {way: SubVectorProblem(factors, way, vector_length) for way in ways}
    fits = {way: problem.fit(num_vectors, topk, rounds, seed) for way, problem in problems.items()}
    balance = min(fits, key=lambda way: problems[way].error(fits[way]))
    problem = problems[balance]
    fit = problem.refine(fits[balance], steps)
    tensors = _vblora_tensors(*problem.bank_and_logits(fit))
    by_module, overall = errors(vblora_factors(tensors, config), problem.factors, factors)
    sub_vectors = formats.count_sub_vectors(features.values(), config.r, vector_length)
    full_bytes, topk_bytes = (
        formats.vblora_stored_bytes(sub_vectors, num_vectors, vector_length, topk, only_topk)
        for only_topk in (False, True)
    )
    result = Compression(
        config=config,
        tensors={**others, **tensors},
        balance=balance,
        errors=by_module,
        overall=overall,
        lora_bytes=sum(
            formats.lora_stored_bytes([features[name]], len(A)) for name, (A, _) in factors.items()
        ),
        full_bytes=full_bytes,
        topk_bytes=topk_bytes,
    )
    if path is not None:
        result.save(path)
    return result


def _vblora_tensors(bank: Tensor, logits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Bank and logits by PEFT's keys."""
    tensors = {BANK_KEY: bank}
    for name, both in logits.items():
        for part, mine in zip(LOGITS, both, strict=True):
            tensors[f"{LAYER_PREFIX}{name}.{part}"] = mine
    return tensors


def _read_lora(
    source: Source, adapter_name: str
) -> tuple[LoraConfig, dict[str, Factors], dict[str, Tensor]]:
    """Config, (A, scaling * B) by module, and the other tensors of a LoRA adapter."""
    if isinstance(source, nn.Module):
        model = _peft_model(source, adapter_name)
        config = model.peft_config[adapter_name]
        where = f"adapter {adapter_name!r}"
        _check_is_lora(config, where)
        tensors = get_peft_model_state_dict(model, adapter_name=adapter_name)
    else:
        folder = _subfolder(source, adapter_name)
        where = str(folder)
        formats.read_fields(folder)  # says what is wrong with the config
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (ValueError, TypeError, KeyError) as error:  # whatever its own checks raise
            raise CheckpointError(f"{folder / CONFIG_NAME} can't be read: {error}.") from error
        _check_is_lora(config, where)
        tensors = formats.read_tensors(folder)
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


# --- folders


def _free_folder(path: str | os.PathLike[str], peft_type: PeftType) -> Path:
    """The folder to write to, if nothing would be lost: new, empty, or of the same kind."""
    folder = Path(os.path.realpath(path))
    if folder.is_dir():
        found = {file.name for file in folder.iterdir()}
        strangers = found - {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME}
        if strangers:
            raise CheckpointError(
                f"{path} holds other files ({', '.join(sorted(strangers)[:3])}); give a new folder."
            )
        if CONFIG_NAME in found:
            kind = formats.read_fields(folder)["peft_type"]
            if kind != peft_type:
                raise CheckpointError(f"{path} holds a {kind} adapter; give a new folder.")
    elif os.path.lexists(folder):
        raise CheckpointError(f"{path} is a file; give a folder.")
    above = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "can't be written to" if above.is_dir() else "is a file"
        raise CheckpointError(f"{path} can't be made, since {above} {why}.")
    return folder


def _write(folder: Path, config: PeftConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's folder completely or not at all."""
    with _complete_folder(folder) as scratch:
        # safetensors takes no tensors that share memory, as tied weights do.
        separate = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
        separate = {key: tensor.contiguous() for key, tensor in separate.items()}
        save_file(separate, scratch / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(scratch))


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex
    scratch, old = (folder.with_name(f".{folder.name}.{tag}.{end}") for end in ("new", "old"))
    scratch.mkdir()
    try:
        yield scratch
        if folder.is_dir():
            folder.rename(old)
        try:
            scratch.rename(folder)
        except OSError:
            if old.is_dir():
                old.rename(folder)
            raise
    except BaseException:
        shutil.rmtree(scratch)
        raise
    if old.is_dir():
        shutil.rmtree(old)
