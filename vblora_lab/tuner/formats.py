"""What a VB-LoRA adapter is on disk: two formats, key for key PEFT's.

    base_model.vblora_vector_bank                     (num_vectors, vector_length)

and per adapted layer, with N standing for A (r, in_tiles) or B (out_tiles, r), either all logits

    base_model.model.<layer>.vblora_logits_N               (*N, num_vectors)

or, with save_only_topk_weights, only what the choice came to:

    base_model.model.<layer>.vblora_logits_N_topk_indices  (*N, topk), smallest integer type
    base_model.model.<layer>.vblora_logits_N_topk_weights  (*N, topk - 1)

The last weight isn't stored, since the weights of a sub-vector sum to 1. Logits are rebuilt as the
logarithm of the weights, and -inf where nothing was stored: softmax gives the weights back, but
training can't go on from there.

Weights are float32 whatever the adapter's dtype: PEFT rebuilds logits in float32 and can't mix.
Bank and logits may be float16 (`in_dtype`). For a file in 8 bits, see `eight_bits`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from vblora_lab.admixture import choose
from vblora_lab.errors import CheckpointError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.precision import DTYPES, FLOAT16, check_range

BANK_KEY = "base_model.vblora_vector_bank"
LAYER_PREFIX = "base_model.model."
COMPILED = "_orig_mod."  # torch.compile's own prefix, which belongs in no file
LOGITS = ("vblora_logits_A", "vblora_logits_B")
INDICES, WEIGHTS = "_topk_indices", "_topk_weights"

Shape = tuple[int, ...]


# --- one sub-vector's choice <-> its logits


def index_dtype(num_vectors: int) -> torch.dtype:
    """The integer type in which PEFT stores indices into a bank of this many vectors."""
    if num_vectors < 2**8:
        return torch.uint8
    return torch.int16 if num_vectors < 2**15 else torch.int32


def pack(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """What is stored of a choice.

    Args:
        logits: (..., num_vectors), in any float dtype.
        topk: how many vectors are chosen.

    Returns:
        indices (..., topk) in the smallest integer type, largest weight first, and weights
        (..., topk - 1) float32.
    """
    indices, weights = choose(logits.float(), topk)
    return indices.to(index_dtype(logits.shape[-1])), within_one(weights[..., :-1])


def within_one(weights: Tensor) -> Tensor:
    """Weights (..., topk - 1), the largest first, of a sum that leaves no less than 0 to the last.

    Rounding can bring their sum above 1. PEFT would then take the logarithm of a negative last
    weight, and its whole model would be NaN; the largest weight gives way.
    """
    weights = weights.clone()
    topk = weights.shape[-1] + 1
    if topk > 1:
        # Sums of several are themselves rounded.
        most = 1 - topk * torch.finfo(torch.float32).eps if topk > 2 else 1.0
        weights[..., 0] -= (weights.sum(-1) - most).clamp_min(0)
    return weights


def unpack(indices: Tensor, weights: Tensor, num_vectors: int, where: str = "the file") -> Tensor:
    """The inverse of `pack`, up to what it left out.

    Args:
        indices: (..., topk) integers below num_vectors, no two the same in a sub-vector.
        weights: (..., topk - 1) of a sum of at most 1, in any float dtype.
        num_vectors: size of the bank.
        where: names the tensors in an error.

    Returns:
        Logits (..., num_vectors) float32: -inf for each vector that wasn't chosen.

    Raises:
        CheckpointError: the indices or weights can't be a choice.
    """
    check_choice(indices, weights, num_vectors, where)
    weights = weights.float()
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    # Rounding can leave a last weight of zero or just below. Its logarithm would be -inf or NaN,
    # and the choice lost; the smallest normal number keeps it, at practically no weight.
    logits = torch.log(weights.clamp_min(torch.finfo(torch.float32).tiny))
    all_logits = logits.new_full((*logits.shape[:-1], num_vectors), -torch.inf)
    return all_logits.scatter_(-1, indices.long(), logits)


def check_choice(indices: Tensor, weights: Tensor, num_vectors: int, where: str) -> None:
    """Raise `CheckpointError` for indices or weights that no choice of vectors gives."""
    if indices.is_floating_point() or not weights.is_floating_point():
        raise CheckpointError(
            f"{where}: indices are {indices.dtype} and weights {weights.dtype}; must be integers "
            "and floats."
        )
    if indices.numel() == 0:
        return
    indices = indices.long()  # uint8 knows no comparison with negative numbers
    lowest, highest = int(indices.min()), int(indices.max())
    if lowest < 0 or highest >= num_vectors:
        raise CheckpointError(
            f"{where}: stored indices run from {lowest} to {highest}, but the bank has "
            f"num_vectors={num_vectors} vectors (0 to {num_vectors - 1})."
        )
    in_order = indices.sort(-1).values
    if (in_order[..., 1:] == in_order[..., :-1]).any():
        raise CheckpointError(f"{where}: a sub-vector has the same index twice.")
    if not torch.isfinite(weights).all():
        raise CheckpointError(f"{where}: stored weights are NaN or infinite.")
    total = weights.float().sum(-1)
    rounding = indices.shape[-1] * torch.finfo(weights.dtype).eps
    if (weights < 0).any() or (total > 1 + rounding).any():
        raise CheckpointError(
            f"{where}: the stored weights of a sub-vector must be 0 or more and sum to 1 at most; "
            f"the smallest is {float(weights.min()):g}, the largest sum {float(total.max()):g}."
        )


# --- the state dict of an adapter


def packed(state_dict: Mapping[str, Tensor], topk: int) -> dict[str, Tensor]:
    """A full-logits state dict in the top-k format; other entries pass through."""
    result: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if any(name in key for name in LOGITS):
            result[key + INDICES], result[key + WEIGHTS] = pack(tensor, topk)
        else:
            result[key] = tensor
    return result


def in_dtype(state_dict: Mapping[str, Tensor], save_in: str, topk: int) -> dict[str, Tensor]:
    """A state dict of either format with bank and logits in another dtype, as PEFT loads them.

    Args:
        state_dict: of an adapter.
        save_in: "float32" or "float16"; weights stay in float32, others as they are.
        topk: how many vectors are chosen; rounding changes no choice.

    Raises:
        CheckpointError: a number is beyond what that dtype holds.
    """
    result = dict(state_dict)
    for key, tensor in state_dict.items():
        if key == BANK_KEY or key.endswith(LOGITS):
            check_range(tensor, save_in, key)
            result[key] = tensor.to(DTYPES[save_in])
            if key != BANK_KEY and save_in == FLOAT16:
                result[key] = _with_the_same_choice(result[key], choose(tensor.float(), topk)[0])
        elif key.endswith(WEIGHTS):
            result[key] = tensor.float()
    return result


def _with_the_same_choice(logits: Tensor, indices: Tensor) -> Tensor:
    """Logits in float16 whose largest are those that were before they were rounded.

    Args:
        logits: (..., num_vectors) float16.
        indices: (..., topk), those that were the largest.
    """
    chosen = logits.gather(-1, indices)
    least = chosen.float().amin(-1, keepdim=True)
    below = (least - (least.abs() * 2**-10).clamp_min(2**-24)).half()  # the next number, or nearly
    return torch.minimum(logits, below).scatter(-1, indices, chosen)


def unpacked(state_dict: Mapping[str, Tensor], num_vectors: int) -> dict[str, Tensor]:
    """A state dict of either format in the full-logits format."""
    result = {k: v for k, v in state_dict.items() if not k.endswith((INDICES, WEIGHTS))}
    for key in state_dict:
        if key.endswith(INDICES):
            stem = key.removesuffix(INDICES)
            result[stem] = unpack(state_dict[key], state_dict[stem + WEIGHTS], num_vectors, stem)
    return result


def expected_shapes(
    config: VBLoRAConfig,
    features: Mapping[str, tuple[int, int]],
    only_topk: bool,
    with_bank: bool = True,
) -> dict[str, Shape]:
    """The keys and shapes of an adapter's bank and logits.

    Args:
        config: of the adapter.
        features: (in_features, out_features) of each adapted layer, by full name.
        only_topk: in the top-k format rather than with all logits.
        with_bank: False for an adapter that uses the bank of another.
    """
    shapes: dict[str, Shape] = {}
    if with_bank:
        shapes[BANK_KEY] = (config.num_vectors, config.vector_length)
    for name, (in_features, out_features) in features.items():
        tiles_A = (config.r, in_features // config.vector_length)
        tiles_B = (out_features // config.vector_length, config.r)
        for logits, tiles in zip(LOGITS, (tiles_A, tiles_B), strict=True):
            key = f"{LAYER_PREFIX}{name}.{logits}"
            if only_topk:
                shapes[key + INDICES] = (*tiles, config.topk)
                shapes[key + WEIGHTS] = (*tiles, config.topk - 1)
            else:
                shapes[key] = (*tiles, config.num_vectors)
    return shapes


def check_tensors(
    tensors: Mapping[str, Tensor],
    config: VBLoRAConfig,
    features: Mapping[str, tuple[int, int]],
    others: Mapping[str, Tensor],
    needed_others: Collection[str],
    where: str,
) -> None:
    """Compare what a file holds with what a model expects, and look at its numbers.

    Takes what `check_shapes` takes.

    Raises:
        CheckpointError: keys are missing, unexpected, or of another shape; or numbers that no
            training gives: NaN, infinite, or no choice of bank vectors.
    """
    for key in check_shapes(tensors, config, features, others, needed_others, where):
        if key.endswith(INDICES):
            stem = key.removesuffix(INDICES)
            weights = tensors[stem + WEIGHTS]
            check_dtype(weights, f"{where}: {stem + WEIGHTS}")
            check_choice(tensors[key], weights, config.num_vectors, f"{where}: {stem}")
        elif not key.endswith(WEIGHTS):
            check_numbers(tensors[key], f"{where}: {key}", are_logits=key != BANK_KEY)


def check_shapes(
    tensors: Mapping[str, Tensor],
    config: VBLoRAConfig,
    features: Mapping[str, tuple[int, int]],
    others: Mapping[str, Tensor],
    needed_others: Collection[str],
    where: str,
) -> dict[str, Shape]:
    """Compare the keys and shapes of a file with what a model expects.

    Args:
        tensors: of the file, in either format; a bank may be missing.
        config: of the adapter.
        features: (in_features, out_features) of each adapted layer, by full name.
        others: tensors of the model that the file may hold beside them, by key (see `beside`).
        needed_others: the keys of those that it must hold.
        where: names the file in the message.

    Returns:
        The shapes of bank and logits, by key.

    Raises:
        CheckpointError: keys are missing, unexpected, or of another shape.
    """
    only_topk, with_bank = is_topk_format(tensors), BANK_KEY in tensors
    expected = expected_shapes(config, features, only_topk, with_bank)
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    needed = {key: tuple(others[key].shape) for key in found.keys() & others.keys()} | expected
    missing = {*expected, *needed_others} - found.keys()
    problems = [f"{key} is missing" for key in missing]
    problems += [f"{key} is not what its config stores" for key in found.keys() - needed.keys()]
    problems += [
        f"{key} has shape {found[key]}, this model needs {needed[key]}"
        for key in found.keys() & needed.keys()
        if found[key] != needed[key]
    ]
    if problems:
        problems.sort()
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{where} doesn't fit this model: {'; '.join(problems[:4])}{more}. Was it made for "
            "another base model, or with another config?"
        )
    return expected


def check_numbers(tensor: Tensor, where: str, are_logits: bool) -> None:
    """Raise `CheckpointError` for what no bank or logits can be.

    Logits may be -inf: saved again after they were rebuilt from their top k. But not all of one
    sub-vector, whose weights would be NaN.
    """
    check_dtype(tensor, where)
    finite = torch.isfinite(tensor)
    if not (finite | (tensor == -torch.inf) if are_logits else finite).all():
        raise CheckpointError(f"{where} is NaN or infinite; the training probably diverged.")
    if not finite.any(-1).all():
        raise CheckpointError(f"{where}: all logits of a sub-vector are -inf; it has no choice.")


def check_dtype(tensor: Tensor, where: str, like: Tensor | None = None) -> None:
    """Raise `CheckpointError` unless a tensor can be loaded into one of floats, or into `like`."""
    if like is None or like.is_floating_point():
        # Of one byte are the float8 types: scaled by a number that is kept elsewhere.
        fits, wanted = (
            tensor.is_floating_point() and tensor.itemsize > 1,
            "floats of 2 bytes or more",
        )
    else:
        fits, wanted = tensor.dtype == like.dtype, str(like.dtype)
    if not fits:
        raise CheckpointError(f"{where} is {tensor.dtype}; must be {wanted}.")


def is_topk_format(keys: Iterable[str]) -> bool:
    """Whether these are the keys of the top-k format."""
    return any(key.endswith(INDICES) for key in keys)


def check_format(keys: Iterable[str], config: VBLoRAConfig, where: str) -> None:
    """Raise `CheckpointError` for a file that isn't in the format that its config says."""
    only_topk = is_topk_format(keys)
    if only_topk != config.save_only_topk_weights:
        holds = "only the top-k weights" if only_topk else "all logits"
        raise CheckpointError(
            f"{where} holds {holds}, but its config says save_only_topk_weights="
            f"{config.save_only_topk_weights}. Were config and weights of two adapters mixed up?"
        )
