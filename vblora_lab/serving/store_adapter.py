"""What a store gives: the record of an adapter, and adapters that were read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from vblora_lab.tuner.config import VBLoRAConfig


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter of a store, as it was when it was looked up.

    Attributes:
        name: in the store.
        digest: the SHA-256 of its files; another adapter of the same name has another.
        bank: the fingerprint of the bank that it needs.
        bytes: of its files, without the bank.
        base_model: what its config calls the model that it was trained for, if it does.
        folder: with its files, for `from_pretrained`. It is deleted some time after the adapter
            was replaced or removed; `AdapterStore.read` looks again then.
        bank_folder: for `from_pretrained(bank=)`.
    """

    name: str
    digest: str
    bank: str
    bytes: int
    base_model: str | None
    folder: Path = field(repr=False)
    bank_folder: Path = field(repr=False)


class Opened(NamedTuple):
    """What `AdapterStore.read` returns.

    Attributes:
        adapter: its record.
        config: of the adapter.
        tensors: of the adapter's file and, under `formats.BANK_KEY`, its bank (num_vectors,
            vector_length), which all adapters that share it have in common. They are mapped from
            the disk: don't change them.
    """

    adapter: StoredAdapter
    config: VBLoRAConfig
    tensors: dict[str, Tensor]


class Stored:
    """A store as a mapping from names to (tensors, config); see `AdapterStore.stored`."""

    def __init__(self, read: Callable[[str], Opened], has: Callable[[object], bool]) -> None:
        self._read, self._has = read, has

    def __contains__(self, name: object) -> bool:
        return self._has(name)

    def __getitem__(self, name: str) -> tuple[dict[str, Tensor], VBLoRAConfig]:
        opened = self._read(name)
        return opened.tensors, opened.config
