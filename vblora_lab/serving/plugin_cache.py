"""LoRA folders made of a store's adapters, on demand, in at most so many bytes of disk.

An engine reads such a folder when it likes, and again after it dropped the adapter from memory. So
a folder that was given out stays as long as this process, unless its name is asked for again, which
an engine does once it forgot the name. Only folders from before are deleted to make room.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from vblora_lab.convert.export import write_lora
from vblora_lab.convert.places import is_made_of
from vblora_lab.errors import StoreError
from vblora_lab.serving.store_adapter import Opened
from vblora_lab.serving.store_sizes import lora_bytes
from vblora_lab.tables import count, readable


class LoRACache:
    """A folder of LoRA adapters, each named by the digest of the VB-LoRA adapter behind it.

    For one thread. Processes that are given the same folder take a folder each in it.

    Args:
        folder: is made if it isn't there.
        limit: bytes of weights that one process keeps.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.limit = limit
        self.folder, self._lock = _own_folder(folder)
        for path in self.folder.glob(".*.new"):  # of a process that was killed
            shutil.rmtree(path)
        # Bytes by digest, the least recently used first. What isn't of this cache is left alone.
        paths = [path for path in self.folder.iterdir() if is_made_of(path, path.name)]
        paths.sort(key=lambda path: path.stat().st_mtime_ns)
        self._bytes = {path.name: _weights(path).stat().st_size for path in paths}
        self._given: dict[str, str] = {}  # digests by the name that they were given out for

    def find(self, name: str, digest: str) -> Path | None:
        """The LoRA for a name, if it is there; the engine has it from now on."""
        if not is_made_of(self.folder / digest, digest):
            return None
        return self._give(name, digest)

    def add(self, opened: Opened) -> Path:
        """Convert an adapter, and give it out.

        Raises:
            StoreError: there is no room.
        """
        adapter, config, tensors = opened
        self._given.pop(adapter.name, None)  # the engine asks again, so it has no use for the old
        self._make_room(adapter.name, lora_bytes(opened))
        write_lora(self.folder / adapter.digest, config, tensors, adapter.digest)
        return self._give(adapter.name, adapter.digest)

    def _give(self, name: str, digest: str) -> Path:
        path = self.folder / digest
        self._given[name] = digest
        self._bytes.pop(digest, None)
        self._bytes[digest] = _weights(path).stat().st_size
        os.utime(path)
        return path

    def _make_room(self, name: str, needed: int) -> None:
        in_use = {digest: self._bytes[digest] for digest in self._given.values()}
        if sum(in_use.values()) + needed > self.limit:
            raise StoreError(
                f"adapter {name!r} takes {readable(needed)} as LoRA, and the cache {self.folder} "
                f"has no room for it: it may hold {readable(self.limit)}, and "
                f"{count(len(in_use), 'adapter')} of {readable(sum(in_use.values()))} are in use. "
                "Raise VBLORA_LAB_LORA_CACHE_BYTES, or let the engine unload an adapter."
            )
        for digest in [each for each in self._bytes if each not in in_use]:
            if sum(self._bytes.values()) + needed <= self.limit:
                return
            shutil.rmtree(self.folder / digest)
            del self._bytes[digest]


def _own_folder(folder: Path, number: int = 0) -> tuple[Path, FileLock]:
    """A folder in this one that no other process uses; the lock ends with this process."""
    own = folder / f"lora-{number}"
    own.mkdir(parents=True, exist_ok=True)
    lock = FileLock(own.with_suffix(".lock"), thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _own_folder(folder, number + 1)
    return own, lock


def _weights(path: Path) -> Path:
    return path / SAFETENSORS_WEIGHTS_NAME
