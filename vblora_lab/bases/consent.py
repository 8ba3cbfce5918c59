"""Whether something large may be fetched: said by the caller, or asked on a terminal."""

from __future__ import annotations

import sys


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
