"""What may lie in a folder before a run begins there: nothing that is in the way is touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vblora_lab.errors import SessionError
from vblora_lab.runs.layout import (
    ADAPTER,
    ASIDE,
    CHECKPOINT,
    LOCK,
    RATES,
    RESULT,
    SETTINGS,
    TRACE,
)

FILES, FOLDERS = (SETTINGS, TRACE, RATES, RESULT, LOCK), (ADAPTER, ASIDE)


def check_kinds(folder: Path) -> None:
    """Refuse what is no plain file, or no folder, under a name that a run writes to.

    Through a link a run would write elsewhere, and for a pipe it would wait for ever. The folder
    itself may be a link. Raises `SessionError`.
    """
    for name in (*FILES, *FOLDERS, *_checkpoint_names(folder)):
        if not os.path.lexists(folder / name):
            continue
        mode = os.lstat(folder / name).st_mode
        if not (stat.S_ISREG(mode) if name in FILES else stat.S_ISDIR(mode)):
            raise SessionError(
                f"{str(folder / name)!r} is {_kind(mode)}, where a run has "
                f"{'a file' if name in FILES else 'a folder'} of its own. Move it away, or choose "
                "another folder."
            )


def check_is_free(folder: Path) -> None:
    """Refuse a folder without a run in which there is what a run would replace or delete.

    Raises `SessionError`.
    """
    for name in (TRACE, RATES, RESULT, ADAPTER, *_checkpoint_names(folder)):
        if os.path.lexists(folder / name):
            raise SessionError(
                f"{str(folder)!r} holds {name}, but no {SETTINGS}: no run wrote it that could go "
                "on here, and a new one would replace it. Move it away, or choose another folder."
            )
    # All that a process leaves there which is killed before it has noted its settings.
    if aside := {path.name for path in (folder / ASIDE).glob("*")} - {SETTINGS}:
        raise SessionError(
            f"{str(folder / ASIDE)!r} holds {min(aside)}, and a run would delete it. Move it away, "
            "or choose another folder."
        )


def _checkpoint_names(folder: Path) -> list[str]:
    found = (path.name for path in folder.glob(f"{CHECKPOINT}*"))
    return sorted(name for name in found if name.removeprefix(CHECKPOINT).isdecimal())


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "no folder" if stat.S_ISREG(mode) else "a device")
