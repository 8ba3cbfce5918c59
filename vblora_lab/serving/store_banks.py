"""The banks of a store in memory: each mapped from the disk once, for all adapters that use it."""

from __future__ import annotations

import threading
import weakref
from collections import deque

from torch import Tensor

from vblora_lab.errors import CheckpointError
from vblora_lab.serving.store_files import BANKS, StoreFiles
from vblora_lab.tuner.banks import bank_of_folder, fingerprint

FEW = 4


class MappedBanks:
    """Banks by fingerprint. They stay while somebody uses them, and the latest few longer."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._held: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()
        self._latest: deque[Tensor] = deque(maxlen=FEW)
        self._one_at_a_time = threading.Lock()

    def get(self, digest: str) -> Tensor:
        """A bank (num_vectors, vector_length) of the store.

        Raises:
            CheckpointError: it isn't there, or damaged.
        """
        with self._one_at_a_time:
            bank = self._held.get(digest)
            if bank is None:
                bank = bank_of_folder(self._files.place(BANKS, digest))
                if fingerprint(bank) != digest:
                    raise CheckpointError(
                        f"bank {digest[:12]}... of {self._files.root} is damaged: its numbers "
                        "aren't those that were added. Add an adapter that has it with "
                        "replace=True."
                    )
                self._held[digest] = bank
                self._latest.append(bank)
            return bank

    def name_of(self, bank: Tensor) -> str:
        """The fingerprint of a bank; at once if it came from here."""
        held = list(self._held.items())
        return next((digest for digest, each in held if each is bank), None) or fingerprint(bank)
