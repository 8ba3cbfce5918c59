"""The page of the times: one row for each chapter, as it was last watched."""

from __future__ import annotations

import os
import platform
import re
import string
from importlib.metadata import version

SHOWN = {
    "ready": "kernel ready",
    "first output": "first output",
    "first picture": "first picture",
    "all cells": "all cells",
    "first sign": "Train to first sign",
    "longest silence": "longest silence",
    "first step": "Train to first step",
    "restart": "restart and run all",
    "load": "load",
}
VERSIONS = ("jupyterlab", "ipykernel", "ipywidgets", "anywidget", "torch", "peft", "transformers")
HEAD = """\
# A newcomer, watched

`make watch` writes this page, `make watch CHAPTERS="03"` one row of it: each row tells of the last
time that its chapter was watched, and the other rows stay as they are.

Seconds. *Kernel ready* counts from the opening of the page, *first output* and *first picture* from
the first cell that is run, imports included. *Train* is the button of the panel, and *longest
silence* how long nothing on it changed before the first step. *Load* is the mean of the machine's
load averages meanwhile. Where it is far above the number of cores, others used the machine: take
that row's times for upper bounds. The letter says which machine and versions it was, below.
"""
LETTERS = string.ascii_lowercase
MACHINE = re.compile(r"^- \*\*([a-z])\*\*: (.*)", re.MULTILINE)


def report(before: str, measured: dict[str, dict[str, float]], every: list[str], here: str) -> str:
    """The page with new rows.

    before: the page as it was, or "".
    measured: seconds by what they were for, and the load, of the chapters watched now.
    every: the names of all chapters; those that nobody watched are named.
    here: machine and versions, as `this_machine` says them.
    """
    rows = _read(before)
    for name, seconds in measured.items():
        rows[name] = [*(_shown(seconds.get(what)) for what in SHOWN), here]
    rows = {name: rows[name] for name in every if name in rows}
    machines = list(dict.fromkeys(machine for *_, machine in rows.values()))
    lines = [HEAD, "| " + " | ".join(["chapter", *SHOWN.values(), "with"]) + " |"]
    lines.append("|---" + "|---:" * len(SHOWN) + "|---|")
    for name, (*cells, machine) in rows.items():
        lines.append("| " + " | ".join([name, *cells, LETTERS[machines.index(machine)]]) + " |")
    missing = [name[:2] for name in every if name not in rows]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    told = (
        f"- **{letter}**: {machine}" for letter, machine in zip(LETTERS, machines, strict=False)
    )
    return "\n".join([*lines, "", *told, ""])


def this_machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    cores = f"{os.cpu_count()} cores ({platform.machine()})"
    return f"{cores}, Python {platform.python_version()}, {versions}"


def _read(page: str) -> dict[str, list[str]]:
    """The rows of a page by chapter: what is shown of it, and its machine in full."""
    machines = dict(MACHINE.findall(page))
    rows = {}
    for line in page.splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if re.match(r"\d\d-", name) and len(cells) == len(SHOWN) + 1:
            rows[name] = [*cells[:-1], machines[cells[-1]]]
    return rows


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"
