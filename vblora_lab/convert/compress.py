"""LoRA -> VB-LoRA: a bank and logits that make a given LoRA's update, as well as they can."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftType
from torch import Tensor

from vblora_lab.convert.adapters import Source, read_lora, shared_fields, vblora_factors
from vblora_lab.convert.factors import BALANCES, Errors, Factors, SubVectorProblem, errors
from vblora_lab.convert.places import free_folder, write_adapter
from vblora_lab.errors import ConfigError
from vblora_lab.tuner import formats, sizes
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.formats import BANK_KEY, LAYER_PREFIX, LOGITS
from vblora_lab.tuner.problems import check_tiles


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
        folder = free_folder(path, PeftType.VBLORA)
        tensors = self.tensors
        if self.config.save_only_topk_weights:
            tensors = formats.packed(tensors, self.config.topk)
        write_adapter(folder, self.config, tensors)
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
        free_folder(path, PeftType.VBLORA)
    _check_arguments(balance, rounds, steps, seed)
    lora_config, factors, others = read_lora(lora_adapter, adapter_name)
    config = VBLoRAConfig(
        r=max(len(A) for A, _ in factors.values()),
        num_vectors=num_vectors,
        vector_length=vector_length,
        topk=topk,
        save_only_topk_weights=save_only_topk_weights,
        vblora_dropout=lora_config.lora_dropout,
        bias=lora_config.bias.replace("lora_only", "vblora_only"),
        **shared_fields(lora_config, factors),
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
    result = _compression(config, {**others, **tensors}, balance, problem.factors, factors)
    if path is not None:
        result.save(path)
    return result


def _check_arguments(balance: str, rounds: int, steps: int, seed: int) -> None:
    if balance not in (*BALANCES, "auto"):
        allowed = ", ".join(map(repr, (*BALANCES, "auto")))
        raise ConfigError(f"balance={balance!r}: must be one of {allowed}.")
    for name, value, least in (("rounds", rounds, 1), ("steps", steps, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r}: must be a whole number, at least {least}.")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed!r}: must be a whole number, at least 0 and below 2**63.")


def _compression(
    config: VBLoRAConfig,
    tensors: dict[str, Tensor],
    balance: str,
    balanced: Mapping[str, Factors],
    wanted: Mapping[str, Factors],
) -> Compression:
    """The result: how far the found factors are from those that were wanted, and its sizes."""
    by_module, overall = errors(vblora_factors(tensors, config), balanced, wanted)
    features = {name: (A.shape[1], B.shape[0]) for name, (A, B) in wanted.items()}
    return Compression(
        config=config,
        tensors=tensors,
        balance=balance,
        errors=by_module,
        overall=overall,
        lora_bytes=sum(
            sizes.lora_stored_bytes([features[name]], len(A)) for name, (A, _) in wanted.items()
        ),
        full_bytes=sizes.vblora_stored_bytes(config, features.values(), only_topk=False),
        topk_bytes=sizes.vblora_stored_bytes(config, features.values(), only_topk=True),
    )


def _vblora_tensors(bank: Tensor, logits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Bank and logits by PEFT's keys."""
    tensors = {BANK_KEY: bank}
    for name, both in logits.items():
        for part, mine in zip(LOGITS, both, strict=True):
            tensors[f"{LAYER_PREFIX}{name}.{part}"] = mine
    return tensors
