"""A folder of thousands of adapters and the few banks that they share, by name.

    store = AdapterStore("store")
    store.add("runs/user-17/adapter", "user-17", bank="runs/first/adapter")
    adapter = store["user-17"]
    model = vblora_lab.from_pretrained(base, adapter.folder, "user-17", bank=adapter.bank_folder)

Adapters are PEFT's files, each without its bank; a bank is there once, however many need it. Names
are looked up in an index and never become paths. See `store_files` for what is on the disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from peft import PeftModel, PeftType
from peft.utils import CONFIG_NAME
from torch import Tensor, nn

from vblora_lab.convert.adapters import folder_digest, read_folder, subfolder
from vblora_lab.convert.export import MODEL_HAS_ITS_BANK, write_lora
from vblora_lab.convert.many import Exported, in_parallel
from vblora_lab.convert.places import free_folder, is_made_of
from vblora_lab.errors import (
    CheckpointError,
    ConfigError,
    StoreError,
    UnknownAdapterError,
    VBLoRAError,
    did_you_mean,
)
from vblora_lab.serving.store_adapter import Opened, Stored, StoredAdapter
from vblora_lab.serving.store_banks import MappedBanks
from vblora_lab.serving.store_files import ADAPTERS, BANKS, NEW, StoreFiles, weights_file
from vblora_lab.serving.store_index import Index, Row, Writer
from vblora_lab.tuner import folders
from vblora_lab.tuner.formats import BANK_KEY
from vblora_lab.tuner.injection import check_adapter_name
from vblora_lab.tuner.loading import Bank, given_bank, local_folder
from vblora_lab.tuner.peft import save_with_bank

INDEX = "index.sqlite"


class AdapterStore:
    """A store of adapters: many threads and processes may read while one writes.

    Iterating gives names in order, `store[name]` an adapter, `name in store` and `len(store)` what
    they say. It must lie on a disk of this machine, since SQLite's locks don't work on others.

    Args:
        path: the store's folder.
        create: make it if there is none; else that is an error.

    Raises:
        StoreError: there is no store, or something else.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(os.path.realpath(path))
        self._files = StoreFiles(self.path)
        if not (self.path / INDEX).is_file():
            self._check_can_be_made(create)
        self._files.make()
        self._index = Index(self.path / INDEX)
        self._banks = MappedBanks(self._files)

    def _check_can_be_made(self, create: bool) -> None:
        if not create:
            raise StoreError(f"there is no store of adapters in {self.path}.")
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; give a folder.")
        found = [each.name for each in self.path.iterdir()] if self.path.is_dir() else []
        begun = (ADAPTERS, BANKS, NEW, "index.", f".{INDEX}.")  # by one that was killed
        strangers = sorted(name for name in found if not name.startswith(begun))
        if strangers:
            raise StoreError(
                f"{self.path} holds other files ({', '.join(strangers[:3])}) and no {INDEX}; give "
                "a new folder for a store."
            )

    # --- looking up

    def __getitem__(self, name: str) -> StoredAdapter:
        found = self.get(name)
        if found is None:
            raise self._unknown(name)
        return found

    def _unknown(self, name: str) -> UnknownAdapterError:
        hint = did_you_mean(name, self._index.near(str(name)))
        return UnknownAdapterError(f"{name!r} is not in the store {self.path}.{hint}")

    def get(self, name: str) -> StoredAdapter | None:
        """The adapter of this name, None if there is none."""
        row = self._index.find(name) if isinstance(name, str) else None
        return None if row is None else self._adapter(row)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name) is not None

    def __len__(self) -> int:
        return self._index.count()

    def __iter__(self) -> Iterator[str]:
        return (adapter.name for adapter in self.adapters())

    def adapters(self) -> Iterator[StoredAdapter]:
        """All adapters in the order of names; what changes meanwhile may be seen or not."""
        page = self._index.page()
        while page:
            yield from map(self._adapter, page)
            page = self._index.page(after=page[-1].name)

    def __repr__(self) -> str:
        return f"AdapterStore({str(self.path)!r})"

    def _adapter(self, row: Row) -> StoredAdapter:
        folder, bank = self._files.place(ADAPTERS, row.digest), self._files.place(BANKS, row.bank)
        return StoredAdapter(*row, folder=folder, bank_folder=bank)

    # --- reading

    def read(self, name: str) -> Opened:
        """Config and tensors of an adapter, once they are known to be what was added.

        Raises:
            UnknownAdapterError: there is no adapter of that name.
            CheckpointError: its files, or those of its bank, are damaged.
        """
        while True:
            adapter = self[name]
            try:
                return self._opened(adapter)
            except (VBLoRAError, OSError):
                if self.get(name) == adapter:
                    raise
                # Replaced or removed while it was read: it is read again, or unknown.

    @property
    def stored(self) -> Stored:
        """The adapters as a mapping from names to (tensors, config)."""
        return Stored(self.read, self.__contains__)

    def _opened(self, adapter: StoredAdapter) -> Opened:
        if folder_digest(adapter.folder) != adapter.digest:
            raise CheckpointError(
                f"adapter {adapter.name!r} of {self.path} is damaged: its files aren't those that "
                "were added. Add it again with replace=True."
            )
        tensors = folders.read_tensors(adapter.folder)
        tensors[BANK_KEY] = self.bank(adapter.bank)
        return Opened(adapter, folders.read_config(adapter.folder), tensors)

    def bank(self, digest: str) -> Tensor:
        """A bank (num_vectors, vector_length) by its fingerprint, mapped from the disk.

        It is mapped once for all who use it at the same time.

        Raises:
            CheckpointError: it isn't there, or damaged.
        """
        return self._banks.get(digest)

    def _bank_in(self, index: Writer, digest: str) -> Tensor | None:
        return self.bank(digest) if index.uses_bank(digest) else None

    # --- changing

    def add(
        self,
        source: PeftModel | str | os.PathLike[str],
        name: str,
        *,
        bank: Bank | None = None,
        adapter_name: str = "default",
        replace: bool = False,
    ) -> StoredAdapter:
        """Put a copy of an adapter into the store, all of it or nothing.

        Config and weights are kept as they are, but a bank in the weights is stored apart. Model
        cards and other files aren't kept.

        Args:
            source: the folder or Hub id of a stored VB-LoRA adapter, or a model that has one.
            name: to find it by; as PEFT allows for names of adapters.
            bank: for an adapter that was stored without its bank, if the store hasn't got that
                yet: the folder or Hub id of an adapter that has it, or the tensor.
            adapter_name: which adapter of the model; of a folder, "default" is the folder itself
                and any other name a folder in it, as PEFT stores them.
            replace: whether it may take the place of one of that name. Whoever reads meanwhile
                gets the old one or the new one.

        Returns:
            What `store[name]` is now.

        Raises:
            ConfigError: the name can't be one; or a bank is given that isn't needed.
            CheckpointError: no VB-LoRA adapter, a damaged one, or one whose bank is missing.
            StoreError: the name is taken. In any case the store is as it was.
        """
        check_adapter_name(name, nn.Module())
        if isinstance(source, nn.Module):
            if bank is not None:
                raise ConfigError(MODEL_HAS_ITS_BANK)
            with tempfile.TemporaryDirectory() as scratch:
                # Else PEFT would ask the Hub whether the vocabulary is that of the base model.
                kept = {"save_embedding_layers": False}
                folder = save_with_bank(source, scratch, adapter_name, **kept)
                return self._add(folder, name, given_bank(bank), replace)
        folder = subfolder(local_folder(source, {}), adapter_name)
        return self._add(folder, name, given_bank(bank), replace)

    def _add(self, folder: Path, name: str, bank: Tensor | None, replace: bool) -> StoredAdapter:
        with self._changing() as index:
            if not replace and index.find(name) is not None:
                raise StoreError(
                    f"{name!r} is in the store {self.path} already; give replace=True, or another "
                    "name."
                )
            config, tensors = read_folder(folder, bank, partial(self._bank_in, index))
            its_bank = self._put_bank(index, tensors.pop(BANK_KEY))
            digest = self._files.put_adapter(
                (folder / CONFIG_NAME).read_bytes(), weights_file(folder), its_bank
            )
            size = sum(f.stat().st_size for f in self._files.place(ADAPTERS, digest).iterdir())
            row = Row(name, digest, its_bank, size, config.base_model_name_or_path)
            self._drop(index, name)
            index.put(row)
        self._sweep()
        return self._adapter(row)

    def _put_bank(self, index: Writer, bank: Tensor) -> str:
        """Store a bank, unless it is there and whole; returns its fingerprint."""
        digest = self._banks.name_of(bank)
        try:
            is_there = self._bank_in(index, digest) is not None
        except CheckpointError:  # damaged: it is written again
            is_there = False
        if not is_there:
            self._files.put_bank(bank, digest)
        return digest

    def remove(self, name: str) -> None:
        """Take an adapter out, and its bank if it was the last to need it.

        Raises:
            UnknownAdapterError: there is no adapter of that name.
        """
        with self._changing() as index:
            if index.find(name) is None:
                raise self._unknown(name)
            self._drop(index, name)
        self._sweep()

    @contextmanager
    def _changing(self) -> Iterator[Writer]:
        """Be the only one that changes the store, once it is clear of what others left."""
        with self._index.writing() as index:
            self._files.sweep(partial(_is_used, index))
            yield index

    def _drop(self, index: Writer, name: str) -> None:
        old = index.find(name)
        if old is not None:
            self._files.mark(ADAPTERS, old.digest)
            self._files.mark(BANKS, old.bank)
            index.remove(name)

    def _sweep(self) -> None:
        """Delete what isn't used any more; should others be writing too long, they do it."""
        with suppress(StoreError), self._changing():
            pass

    # --- the store as a whole

    def export(
        self,
        path: str | os.PathLike[str],
        names: Iterable[str] | None = None,
        *,
        workers: int | None = None,
    ) -> Exported:
        """Write adapters as LoRA, each to a folder of its name; see `convert.many.export_loras`.

        Args:
            path: the folder to write to.
            names: of the adapters; all if not given.
            workers: how many are converted at a time; as many as there are processors if not given.

        Raises:
            UnknownAdapterError: there is no adapter of one of the names; none is written.
        """

        def export(name: str, to: Path) -> bool:
            if is_made_of(to, self[name].digest):
                return False
            adapter, config, tensors = self.read(name)
            write_lora(free_folder(to, PeftType.LORA), config, tensors, adapter.digest)
            return True

        chosen = [self[name].name for name in (self if names is None else names)]
        return in_parallel(export, {name: Path(path) / name for name in chosen}, workers)

    def check(self) -> list[str]:
        """Read every adapter and bank; a sentence for each that is damaged.

        Raises `StoreError` if the index itself is damaged.
        """
        self._index.check()
        found = []
        for adapter in self.adapters():
            try:
                self.read(adapter.name)
            except UnknownAdapterError:
                continue  # removed meanwhile
            except (VBLoRAError, OSError) as error:
                found.append(str(error))
        return found

    def clean(self) -> int:
        """Delete folders that belong to no adapter, which only a power cut leaves; how many."""
        with self._index.writing() as index:
            strays = [
                (kind, digest)
                for kind in (ADAPTERS, BANKS)
                for digest in self._files.all(kind)
                if not _is_used(index, kind, digest)
            ]
            for stray in strays:
                self._files.mark(*stray)
        self._sweep()
        return len(strays)

    def close(self) -> None:
        """Close the index's file; the next call opens it again."""
        self._index.close()


def _is_used(index: Writer, kind: str, digest: str) -> bool:
    return index.uses_adapter(digest) if kind == ADAPTERS else index.uses_bank(digest)
