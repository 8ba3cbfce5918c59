"""Files and folders that are whole or not there.

What is to be written goes to a scratch place beside its target, is forced to the disk, and is then
renamed into place. A process that is killed, a disk that is full, or an interrupt at any line
leaves the old state or the new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch path to write a file at; it takes the place of `path` if the block succeeds.

    Raises:
        OSError: the file can't be written; `path` is as it was.
    """
    place = Path(path)
    new = _beside(place, "new")
    try:
        yield new
        put_in_place(new, place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty scratch folder to fill; it takes the place of `path` if the block succeeds.

    Folders above `path` are made. Raises `OSError` as `whole_file` does.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(place, "new")
    try:
        new.mkdir()
        yield new
        put_in_place(new, place)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def put_in_place(new: Path, place: Path, aside: Path | None = None) -> None:
    """Move a file or folder that is written whole to its place, in place of what is there.

    Args:
        new: on the same file system as `place`.
        place: a file, a folder, or nothing yet. A folder can't be renamed over another, so an old
            one is moved out of the way first, and is back should the move fail.
        aside: the folder that such an old one is moved to, on the same file system; by default
            the one that `place` is in. There it stays if the process is killed meanwhile.

    Raises `OSError` where that fails, and for a folder in place of a file, or a link in place of a
    folder: neither can be what `new` replaces.
    """
    if not new.is_dir() and place.is_dir():
        raise IsADirectoryError(f"{place} is a folder, and a file is to take its place")
    if new.is_dir() and place.is_symlink():
        raise FileExistsError(f"{place} is a link, and a folder is to take its place")
    force_to_disk(new)
    old = _beside(place if aside is None else aside / place.name, "old")
    try:
        if place.is_dir():
            place.rename(old)
        os.replace(new, place)
    except BaseException:
        if old.is_dir() and not place.exists():
            old.rename(place)
        raise
    force_to_disk(place.parent, contents=False)
    if old.is_dir():
        shutil.rmtree(old)


def put_back(aside: Path, folder: Path) -> None:
    """Move back what `put_in_place` had moved aside for something new that never came.

    That is so where its process was killed in between.

    Args:
        aside: as for `put_in_place`.
        folder: that the places are in.
    """
    for old in aside.glob(".*.old"):
        place = folder / old.name.removeprefix(".").rsplit(".", 2)[0]
        if not os.path.lexists(place):
            old.rename(place)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def force_to_disk(path: Path, contents: bool = True) -> None:
    """Wait until a file, or a folder and all that is in it, is on the disk.

    A link in a folder is on the disk with the folder, wherever it leads.
    """
    if path.is_dir():
        for inner in sorted(path.iterdir()) if contents else ():
            if not inner.is_symlink():
                force_to_disk(inner)
        if os.name == "nt":  # where folders can't be opened, and renames are forced by themselves
            return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name}.{uuid.uuid4().hex}.{what}")
