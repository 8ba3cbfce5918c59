"""One bank for many tasks: an adapter that uses a bank trained before, and stores none itself.

Each task after the first trains logits alone; its files hold logits or top-k weights, and beside
them `vblora_bank.json`, which says by a fingerprint which bank they belong to. (adapter_config.json
couldn't say it: PEFT warns of fields that it doesn't know.)

In a model, adapters that share a bank hold the very same parameter. It is frozen for all of them,
since training it for one task would change the others unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import repeat
from operator import is_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vblora_lab.errors import CheckpointError, ConfigError
from vblora_lab.files import whole_file
from vblora_lab.speed.pool import MatrixPool
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.folders import read_tensors
from vblora_lab.tuner.formats import BANK_KEY
from vblora_lab.tuner.of_one import ByAdapter
from vblora_lab.tuner.sharded import asked_by_fsdp, is_cut, is_distributed

FINGERPRINT_NAME = "vblora_bank.json"


class VectorBanks(ByAdapter):
    """The banks (num_vectors, vector_length) of a model by adapter; all its layers hold this one.

    Attributes:
        fingerprints: of each bank that an adapter uses without owning it, by adapter, as it was
            when it was first shared. These stay frozen and aren't stored with the adapter. For
            which bank it is now, see `fingerprint_of`.
        pool: has all layers of the model.
        in_care_of_fsdp: whether FSDP was shown the banks; None if it never asked, see `sharded`.
    """

    def __init__(self, pool: MatrixPool | None = None) -> None:
        super().__init__()
        self.fingerprints: dict[str, str] = {}
        self.pool = pool or MatrixPool()
        self.in_care_of_fsdp: bool | None = None

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The banks; for FSDP, none until all logits are sharded."""
        if is_distributed() and asked_by_fsdp(sys._getframe(1)):
            self.in_care_of_fsdp = all(map(is_cut, self.logits()))
            if not self.in_care_of_fsdp:
                return
        yield from super().named_parameters(*args, **kwargs)

    def logits(self) -> Iterator[Tensor]:
        """Those of all adapters in all layers of the model."""
        for adapter, layers in self.pool.layers.items():
            for layer in layers.values():
                yield from layer.logits(adapter)

    def share(self, adapter_name: str, bank: Tensor) -> None:
        """Make an adapter use this bank, frozen from now on.

        Args:
            adapter_name: has a bank of its own until now.
            bank: (num_vectors, vector_length). A parameter of this dictionary is shared as it is,
                in its dtype; any other tensor is copied, to float32 at least.
        """
        owner = next((name for name, held in self.items() if held is bank), None)
        if owner is None:
            device = bank.device if self[adapter_name].is_meta else self[adapter_name].device
            dtype = torch.promote_types(bank.dtype, torch.float32)
            bank = nn.Parameter(bank.detach().to(device, dtype, copy=True))
        self[adapter_name] = bank
        if owner is not None and owner in self.fingerprints:
            self.fingerprints[adapter_name] = self.fingerprint_of(owner)
        else:
            self.fingerprints[adapter_name] = fingerprint(bank)
        self.keep_frozen()

    def fingerprint_of(self, adapter_name: str) -> str:
        """Of the bank that an adapter uses; of before, should the model be half precision now."""
        bank = self[adapter_name]
        rounded = bank.dtype.itemsize < torch.float32.itemsize
        return self.fingerprints[adapter_name] if rounded else fingerprint(bank)

    def start_from(self, adapter_name: str, bank: Tensor) -> None:
        """Give an adapter a copy of this bank to train, in place of the random one it has."""
        own = self[adapter_name]
        device = bank.device if own.is_meta else own.device
        copied = bank.detach().to(device, own.dtype, copy=True)
        self[adapter_name] = nn.Parameter(copied, requires_grad=own.requires_grad)

    def keep_frozen(self, adapter_names: Iterable[str] | None = None) -> None:
        """Undo what PEFT does when it makes adapters trainable: all that is an adapter's.

        Args:
            adapter_names: of these; of all if not given.
        """
        for name in self.fingerprints if adapter_names is None else adapter_names:
            if name in self.fingerprints or (name in self and self.is_shared(name)):
                self[name].requires_grad_(False)

    def is_shared(self, adapter_name: str) -> bool:
        """Whether an adapter uses a bank that isn't, or isn't only, its own."""
        # Asked of every layer, of a model with any number of adapters: `map` takes little time.
        banks = map(self._parameters.get, self.fingerprints)
        return any(map(is_, banks, repeat(self._parameters[adapter_name])))

    def __delitem__(self, adapter_name: str) -> None:
        super().__delitem__(adapter_name)
        self.fingerprints.pop(adapter_name, None)


def fingerprint(bank: Tensor) -> str:
    """The SHA-256 of a bank's float32 numbers, in row order and little-endian, as hex digits."""
    numbers = bank.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(numbers.astype("<f4").tobytes()).hexdigest()


def check_bank_fits(config: VBLoRAConfig, bank: Tensor, which: str) -> None:
    """Raise `ConfigError` if a config can't use a bank.

    Args:
        config: of the adapter that would use it.
        bank: (num_vectors, vector_length), floats.
        which: says in the message which bank it is.
    """
    if bank.dim() != 2 or not bank.is_floating_point():
        raise ConfigError(
            f"bank: must be floats of shape (num_vectors, vector_length), not {bank.dtype} of "
            f"shape {tuple(bank.shape)}."
        )
    for field, size in zip(("num_vectors", "vector_length"), bank.shape, strict=True):
        if getattr(config, field) != size:
            raise ConfigError(
                f"{field}={getattr(config, field)}: {which} has {field}={size}, and an adapter "
                f"that uses it must have the same; set {field}={size}."
            )
    if not torch.isfinite(bank).all():
        raise ConfigError(f"bank: {which} has NaN or infinite entries.")


def bank_of_folder(folder: str | os.PathLike[str]) -> Tensor:
    """The bank (num_vectors, vector_length) of a stored adapter.

    Raises:
        CheckpointError: there is no adapter, or it has no bank itself.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"bank: there is no folder {folder}.")
    tensors = read_tensors(folder)
    if BANK_KEY not in tensors:
        raise CheckpointError(
            f"{folder} has no bank: its adapter uses that of another. Give the folder of that one."
        )
    return tensors[BANK_KEY]


def find_bank(folder: str, banks: VectorBanks | None, given: Tensor | None) -> Tensor:
    """The bank that an adapter needs which was stored without one.

    Args:
        folder: of the adapter.
        banks: of the model that it is loaded into, if it has any.
        given: by the caller.

    Returns:
        The parameter of `banks` that is this bank, or else `given`.

    Raises:
        CheckpointError: the bank isn't there, or another one is given.
    """
    needed = read_fingerprint(folder)
    if needed is None:
        raise CheckpointError(
            f"{folder} doesn't fit this model: {BANK_KEY} is missing, and there is no "
            f"{FINGERPRINT_NAME} that says which bank it needs."
        )
    if given is not None and fingerprint(given) != needed:
        raise CheckpointError(
            f"bank: is another one than {folder} was trained with (SHA-256 "
            f"{fingerprint(given)[:12]}..., needed {needed[:12]}...)."
        )
    held = {id(bank): bank for bank in banks.values()} if banks is not None else {}
    in_model = next((bank for bank in held.values() if fingerprint(bank) == needed), None)
    found = in_model if in_model is not None else given
    if found is None:
        there = ", ".join(map(repr, banks)) if banks else "none"
        raise CheckpointError(
            f"{folder} was stored without its bank (SHA-256 {needed[:12]}...), and no adapter of "
            f"this model has it (adapters: {there}). Give bank=, the folder of the adapter that "
            "the bank was trained with; or load that adapter into the model first."
        )
    return found


def write_fingerprint(folder: Path, its_fingerprint: str) -> None:
    """Say in a folder of an adapter which bank it needs."""
    with whole_file(folder / FINGERPRINT_NAME) as new:
        new.write_bytes(fingerprint_file(its_fingerprint))


def fingerprint_file(its_fingerprint: str) -> bytes:
    """What is in the file that says which bank an adapter needs."""
    return json.dumps({"sha256": its_fingerprint}, indent=2).encode() + b"\n"


def read_fingerprint(folder: str | os.PathLike[str]) -> str | None:
    """Which bank the adapter in a folder needs; None if the folder doesn't say.

    Raises:
        CheckpointError: what it says can't be read.
    """
    path = Path(folder) / FINGERPRINT_NAME
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it has no fingerprint of a bank.") from error
    return str(found)
