"""What was in a folder when it was whole: the checksum of each file, in a file beside them.

Needs no torch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from vblora_lab.errors import DataError
from vblora_lab.files import sha256_of
from vblora_lab.runs.layout import read_json

MANIFEST = "checksums.json"
"""``{"sha256": {"optimizer.pt": "9f86d0...", ...}}``"""


def write_manifest(folder: Path) -> None:
    """Note all files that are in a folder now. Raises `OSError`."""
    sums = {name: sha256_of(folder / name) for name in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps({"sha256": sums}, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, str] | None:
    """The checksums by the files' names; None where none were noted.

    Raises `DataError` for a file that is no manifest.
    """
    if not os.path.lexists(folder / MANIFEST):
        return None
    sums = read_json(folder / MANIFEST).get("sha256")
    if not isinstance(sums, dict) or not all(isinstance(one, str) for one in sums.values()):
        raise DataError(f"{folder / MANIFEST} has no checksums; expected: {{'sha256': {{...}}}}")
    return sums


def change(folder: Path) -> str | None:
    """The first thing that is not as the manifest says; None where all is, or there is none.

    Files that came later don't count. Raises `DataError` as `read_manifest`, and `OSError`.
    """
    there = set(_files(folder))
    for name, noted in (read_manifest(folder) or {}).items():
        if name not in there:
            return f"{name} is missing"
        if sha256_of(folder / name) != noted:
            return f"{name} has changed: its checksum is another"
    return None


def _files(folder: Path) -> list[str]:
    """The names of the regular files in a folder and below it, but the manifest's."""
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    return sorted(name for name in found if name != MANIFEST)
