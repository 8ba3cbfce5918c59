"""How many sub-vectors, numbers and bytes an adapter has, from its config and the layers' sizes.

`features` are the (in_features, out_features) of each adapted layer, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.formats import index_dtype
from vblora_lab.tuner.precision import DTYPES, INT8, bytes_of

FLOAT32_BYTES = 4

Features = Iterable[tuple[int, int]]


def count_sub_vectors(config: VBLoRAConfig, features: Features) -> int:
    """How many sub-vectors the A and B of these layers are cut into."""
    return sum(config.r * (ins + outs) // config.vector_length for ins, outs in features)


def bank_bytes(config: VBLoRAConfig, float_bytes: int = FLOAT32_BYTES) -> int:
    """Bytes of the bank."""
    return config.num_vectors * config.vector_length * float_bytes


def sub_vector_bytes(
    config: VBLoRAConfig, only_topk: bool | None = None, float_bytes: int = FLOAT32_BYTES
) -> int:
    """Bytes that are stored of one sub-vector: all its logits, or topk indices, topk - 1 weights.

    Weights are float32 whatever the adapter's dtype (see `formats`).

    Args:
        config: of the adapter.
        only_topk: in the top-k format; as config.save_only_topk_weights says if not given.
        float_bytes: of one logit.
    """
    if not (config.save_only_topk_weights if only_topk is None else only_topk):
        return config.num_vectors * float_bytes
    index = index_dtype(config.num_vectors).itemsize
    return config.topk * index + (config.topk - 1) * FLOAT32_BYTES


def vblora_stored_bytes(
    config: VBLoRAConfig,
    features: Features,
    *,
    only_topk: bool | None = None,
    float_bytes: int = FLOAT32_BYTES,
    with_bank: bool = True,
) -> int:
    """Bytes of the tensors of a stored VB-LoRA adapter: the bank, and logits in either format.

    Args:
        config: of the adapter.
        features: of the adapted layers.
        only_topk: in the top-k format; as config.save_only_topk_weights says if not given.
        float_bytes: size of one number of the adapter, 4 for float32.
        with_bank: False for an adapter that uses the bank of another.
    """
    each = sub_vector_bytes(config, only_topk, float_bytes)
    bank = bank_bytes(config, float_bytes) if with_bank else 0
    return bank + count_sub_vectors(config, features) * each


def bytes_saved_in(config: VBLoRAConfig, features: Features, save_in: str) -> int:
    """Bytes of the tensors that `save_adapter` writes of an adapter in the top-k format.

    Args:
        config: of the adapter.
        features: of the adapted layers.
        save_in: "float32", "float16" or "int8".
    """
    features = list(features)
    if save_in != INT8:
        float_bytes = DTYPES[save_in].itemsize
        return vblora_stored_bytes(config, features, only_topk=True, float_bytes=float_bytes)
    count = count_sub_vectors(config, features)
    indices = count * config.topk * index_dtype(config.num_vectors).itemsize
    weights = bytes_of(count * (config.topk - 1), INT8)
    return indices + weights + bytes_of(config.num_vectors * config.vector_length, INT8)


def lora_parameters(features: Features, r: int) -> int:
    """How many numbers a PEFT LoRA adapter of rank r trains: A (r, in) and B (out, r) per layer."""
    return sum(r * (size_in + size_out) for size_in, size_out in features)


def lora_stored_bytes(features: Features, r: int) -> int:
    """Bytes of the tensors of a PEFT LoRA adapter of rank r in float32: A (r, in), B (out, r)."""
    return lora_parameters(features, r) * FLOAT32_BYTES
