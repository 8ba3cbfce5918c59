"""The folders of a store, named by what is in them.

    adapters/3f/3f8a.../    an adapter as PEFT stores it, without its bank, and `vblora_bank.json`
    banks/9c/9c01.../       a bank, the one tensor of PEFT's file; the folder can be given as bank=
    new/                    what is being written, and marks

A folder appears whole and never changes, so that whoever reads it sees one adapter and not parts of
two. Replacing an adapter makes another folder and lets the index point there.

A mark is an empty file, named after a folder that the index may not know. It is there before such
a folder comes, or before the index drops it; `sweep` looks at all marks. So a process that is
killed at any line leaves nothing for ever.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save
from torch import Tensor

from vblora_lab.convert.adapters import folder_digest
from vblora_lab.files import force_to_disk, put_in_place
from vblora_lab.tuner import folders
from vblora_lab.tuner.banks import FINGERPRINT_NAME, fingerprint_file
from vblora_lab.tuner.eight_bits import BANK_IN_EIGHT_BITS, INT8_NAME
from vblora_lab.tuner.formats import BANK_KEY

ADAPTERS, BANKS, NEW = "adapters", "banks", "new"


class StoreFiles:
    """The folders below a store's own. Only the holder of the index's lock may change them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self) -> None:
        for kind in (ADAPTERS, BANKS, NEW):
            (self.root / kind).mkdir(parents=True, exist_ok=True)

    def place(self, kind: str, digest: str) -> Path:
        """The folder of an adapter or bank, there or not."""
        return self.root / kind / digest[:2] / digest

    def put_adapter(self, config: bytes, weights: tuple[str, bytes], bank: str) -> str:
        """Write an adapter.

        Args:
            config: its adapter_config.json.
            weights: name and content of its file of weights, without the bank.
            bank: the fingerprint of that.

        Returns:
            The digest that names its folder.
        """
        with self._scratch() as new:
            (new / CONFIG_NAME).write_bytes(config)
            (new / weights[0]).write_bytes(weights[1])
            (new / FINGERPRINT_NAME).write_bytes(fingerprint_file(bank))
            digest = folder_digest(new)
            if folder_digest(self.place(ADAPTERS, digest)) != digest:  # else the same is there
                self._put(new, ADAPTERS, digest)
        return digest

    def put_bank(self, bank: Tensor, digest: str) -> None:
        """Write a bank (num_vectors, vector_length) under its fingerprint."""
        with self._scratch() as new:
            (new / SAFETENSORS_WEIGHTS_NAME).write_bytes(_saved({BANK_KEY: bank}))
            self._put(new, BANKS, digest)

    def _put(self, new: Path, kind: str, digest: str) -> None:
        place = self.place(kind, digest)
        self.mark(kind, digest)
        if not place.parent.is_dir():
            place.parent.mkdir()
            force_to_disk(place.parent.parent, contents=False)
        put_in_place(new, place, aside=self.root / NEW)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        new = self.root / NEW / uuid.uuid4().hex
        new.mkdir()
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def mark(self, kind: str, digest: str) -> None:
        """Let the next `sweep` look whether this folder is used."""
        (self.root / NEW / f"{kind}.{digest}").touch()

    def sweep(self, is_used: Callable[[str, str], bool]) -> None:
        """Delete what writers left, and marked folders that aren't used.

        Args:
            is_used: says of a kind and a digest whether the index knows it.
        """
        for path in list((self.root / NEW).iterdir()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                continue
            kind, _, digest = path.name.partition(".")
            if is_used(kind, digest) or self._deleted(self.place(kind, digest)):
                path.unlink()

    def _deleted(self, place: Path) -> bool:
        """Delete a folder, out of its place first. Not on Windows while somebody reads it."""
        away = self.root / NEW / uuid.uuid4().hex
        try:
            place.rename(away)
        except FileNotFoundError:
            return True
        except PermissionError:
            return False
        shutil.rmtree(away, ignore_errors=True)
        return True

    def all(self, kind: str) -> set[str]:
        """The digests of all folders of a kind, known to the index or not."""
        return {path.name for path in (self.root / kind).glob("??/*")}


def weights_file(folder: Path) -> tuple[str, bytes]:
    """Name and content of the file of an adapter's weights: as it is, unless a bank is in it.

    Args:
        folder: of the adapter.
    """
    in_eight_bits = folders.is_in_eight_bits(folder)
    path = folder / (INT8_NAME if in_eight_bits else SAFETENSORS_WEIGHTS_NAME)
    tensors, header = folders.read_coded(path)
    bank = BANK_IN_EIGHT_BITS if in_eight_bits else {BANK_KEY}
    needed = {key: tensor for key, tensor in tensors.items() if key not in bank}
    is_as_needed = needed.keys() == tensors.keys()
    return path.name, path.read_bytes() if is_as_needed else _saved(needed, header)


def _saved(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> bytes:
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    return save(plain, metadata={"format": "pt", **(header or {})})
