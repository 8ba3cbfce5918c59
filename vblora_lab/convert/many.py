"""VB-LoRA -> LoRA for many adapters: in parallel, and going on where an earlier call ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftType
from peft.utils import CONFIG_NAME

from vblora_lab.convert.adapters import folder_digest, read_folder
from vblora_lab.convert.export import write_lora
from vblora_lab.convert.places import free_folder, is_made_of
from vblora_lab.errors import CheckpointError, VBLoRAError
from vblora_lab.tables import count
from vblora_lab.tuner.banks import read_fingerprint
from vblora_lab.tuner.loading import Bank, given_bank

SHOWN = 10  # adapters that failed, when they are printed


@dataclass
class Exported:
    """What became of many adapters, by name.

    Attributes:
        written: folders of LoRA that were written.
        kept: that were there already, made of the very same files.
        failed: what was wrong with those that couldn't be exported; the others were.
    """

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{count(len(self.written), 'adapter')} written as LoRA"]
        if self.kept:
            lines.append(f"{count(len(self.kept), 'adapter')} there before")
        if self.failed:
            lines.append(f"{count(len(self.failed), 'adapter')} not exported:")
            lines += [f"  {name}: {self.failed[name]}" for name in list(self.failed)[:SHOWN]]
        return "\n".join(lines)


def export_loras(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    bank: Bank | None = None,
    workers: int | None = None,
) -> Exported:
    """Write each VB-LoRA adapter in a folder as LoRA, to a folder of the same name; `export_lora`.

    An adapter that can't be exported stops no other. Called again after an interruption, it leaves
    what is whole and made of the same files, and writes the rest.

    Args:
        folder: its folders are adapters, such as those that PeftModel.save_pretrained writes of
            several. Others are passed over.
        path: the folder to write to.
        bank: for the adapters that were stored without their bank; see `export_lora`.
        workers: how many are converted at a time; as many as there are processors if not given.

    Raises:
        CheckpointError: there is no adapter in the folder, or no bank where one is said to be.
    """
    adapters = {each.parent.name: each.parent for each in Path(folder).glob(f"*/{CONFIG_NAME}")}
    if not adapters:
        raise CheckpointError(f"no folder in {folder} is an adapter: none has a {CONFIG_NAME}.")
    numbers = given_bank(bank)

    def export(name: str, to: Path) -> bool:
        stored = adapters[name]
        digest = folder_digest(stored)
        if is_made_of(to, digest):
            return False
        needs_bank = read_fingerprint(stored) is not None
        config, tensors = read_folder(stored, numbers if needs_bank else None)
        write_lora(free_folder(to, PeftType.LORA), config, tensors, digest)
        return True

    return in_parallel(export, {name: Path(path) / name for name in sorted(adapters)}, workers)


def in_parallel(
    export: Callable[[str, Path], bool], places: Mapping[str, Path], workers: int | None
) -> Exported:
    """Export to many places in threads: PyTorch and the disk work outside of Python's lock.

    Args:
        export: writes an adapter by name to a folder; whether that was to be done.
        places: the folders, by name.
        workers: see `export_loras`.
    """
    result = Exported()
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        futures = {name: pool.submit(export, name, place) for name, place in places.items()}
        for name, future in futures.items():
            try:
                (result.written if future.result() else result.kept).append(name)
            except (VBLoRAError, OSError) as error:
                result.failed[name] = error
    finally:
        pool.shutdown(cancel_futures=True)
    return result
