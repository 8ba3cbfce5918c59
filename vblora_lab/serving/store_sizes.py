"""What the adapters of a store take, and would take with a bank each or as LoRA, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from vblora_lab.convert.adapters import features_of, is_vblora_key
from vblora_lab.serving.store import AdapterStore
from vblora_lab.serving.store_adapter import Opened
from vblora_lab.tuner.formats import BANK_KEY
from vblora_lab.tuner.sizes import lora_stored_bytes

LORA, OWN, SHARED = "LoRA", "VB-LoRA, a bank each", "VB-LoRA, one bank for all"


def bytes_so_far(store: AdapterStore, names: Sequence[str]) -> dict[str, list[int]]:
    """By method, the bytes stored after each of these adapters: of tensors, without files' headers.

    Args:
        store: that they are in.
        names: of the adapters, in the order in which they come.

    Returns:
        `LORA`: as `export_lora` writes them, of the same rank. `OWN`: each with its bank beside it.
        `SHARED`: as they are in the store, each bank once.

    Raises:
        UnknownAdapterError, CheckpointError: one isn't there, or damaged.
    """
    banks: set[str] = set()
    each: dict[str, list[int]] = {LORA: [], OWN: [], SHARED: []}
    for name in names:
        opened = store.read(name)
        bank = opened.tensors[BANK_KEY].nbytes
        choices = sum(tensor.nbytes for tensor in opened.tensors.values()) - bank
        each[LORA].append(lora_bytes(opened))
        each[OWN].append(choices + bank)
        each[SHARED].append(choices + (0 if opened.adapter.bank in banks else bank))
        banks.add(opened.adapter.bank)
    return {method: list(accumulate(sizes)) for method, sizes in each.items()}


def lora_bytes(opened: Opened) -> int:
    """Bytes that the tensors of an adapter take as LoRA."""
    shapes = {key: tuple(tensor.shape) for key, tensor in opened.tensors.items()}
    features = features_of(shapes, opened.config.vector_length).values()
    others = sum(t.nbytes for key, t in opened.tensors.items() if not is_vblora_key(key))
    return lora_stored_bytes(features, opened.config.r) + others
