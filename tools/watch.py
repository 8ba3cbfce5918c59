"""Watch a newcomer go through the course: `python tools/watch.py`, or name chapters: `... 00 03`.

A JupyterLab is started, and in a headless Chromium each notebook is opened, run cell by cell, and
played with: what can be pressed is pressed, the page is loaded again, cells are run again from the
last to the first, and the kernel is restarted. Pictures, light and dark, 1400 and 1024 pixels wide,
go to build/watched; look at them. It fails where a cell fails, the console has an error, a button
changes nothing, a widget is lost, an output is wider than its place, printed lines break, and where
text is cut or has too little contrast. How long each first result took goes to
docs/platforms/watched.md, if all chapters were watched.

The acts of each chapter are in tools/watched/chapters.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "tools" / "watched")]
from browser_lab import CHROMIUM_FLAGS, EXPOSED, Jupyter, chromium, jupyter  # noqa: E402
from chapters import AFTERWARDS, FROM_THE_TOP, MEANWHILE, ONLY_ONCE  # noqa: E402
from lab import Newcomer  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
PICTURES = ROOT / "build" / "watched"
REPORT = ROOT / "docs" / "platforms" / "watched.md"
LOOK_FOR = ["wide", "cut", "wrapped", "faint", "lost"]
VERSIONS = ("jupyterlab", "ipykernel", "ipywidgets", "anywidget", "torch", "peft", "transformers")
SHOWN = {
    "ready": "kernel ready",
    "first output": "first output",
    "first picture": "first picture",
    "all cells": "all cells",
    "first sign": "Train to first sign",
    "longest silence": "longest silence",
    "first step": "Train to first step",
    "restart": "restart and run all",
}


def watch(browser: Any, lab: Jupyter, name: str) -> tuple[dict[str, float], list[str]]:
    """Go through one notebook: seconds by what they were for, and what was wrong."""
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", lab.files)
    newcomer = Newcomer(browser, lab, name)
    seconds = {"ready": newcomer.ready_after}
    try:
        seconds |= read(newcomer)
        for act in AFTERWARDS.get(name[:2], []):
            do(newcomer, act, seconds)
        newcomer.pictures(PICTURES, LOOK_FOR)
        newcomer.reload()
        for cell in () if name[:2] in FROM_THE_TOP else reversed(newcomer.ids()):
            newcomer.run(cell, refused=ONLY_ONCE.get((name[:2], cell), ""))
        seconds["restart"] = newcomer.restart()
    except (Error, RuntimeError) as error:
        newcomer.fault(f"stopped: {error}")
        newcomer.page.screenshot(path=PICTURES / f"{name[:2]}-stopped.png")
    newcomer.close()
    lab.close_kernels()
    return seconds, list(newcomer.faults)


def read(newcomer: Newcomer) -> dict[str, float]:
    """Run all cells one after the other, and play with what they show."""
    seconds: dict[str, float] = {}
    spent = 0.0  # without the play
    for cell in newcomer.ids():
        spent += newcomer.run(cell)
        if newcomer.has_output(cell):
            seconds.setdefault("first output", spent)
        if newcomer.has_picture(cell):
            seconds.setdefault("first picture", spent)
        for act in MEANWHILE.get(newcomer.name[:2], {}).get(cell, []):
            do(newcomer, act, seconds)
    return seconds | {"all cells": spent}


def do(newcomer: Newcomer, act: tuple[str, ...], seconds: dict[str, float]) -> None:
    name, *arguments = act
    found = getattr(newcomer, name)(*arguments)
    if isinstance(found, dict):
        seconds |= found


def report(measured: dict[str, dict[str, float]], load: float, minutes: float) -> str:
    """The page that says how long it took: one row for each chapter."""
    cores = os.cpu_count() or 1
    upper = " Others used the machine meanwhile: take all times for upper bounds."
    lines = [
        "# A newcomer, watched",
        "",
        f"`make watch`, {minutes:.0f} minutes on {cores} cores ({platform.machine()}) with a mean",
        f"load of {load:.1f}.{upper if load > 1.5 * cores else ''}",
        f"Python {platform.python_version()},",
        ", ".join(f"{name} {version(name)}" for name in VERSIONS) + ".",
        "",
        "Seconds. *Kernel ready* counts from the opening of the page, *first output* and *first",
        "picture* from the first cell that is run, imports included. *Train* is the button of the",
        "panel, and *longest silence* how long nothing on it changed before the first step.",
        "",
        "| " + " | ".join(["chapter", *SHOWN.values()]) + " |",
        "|---" + "|---:" * len(SHOWN) + "|",
    ]
    for name, seconds in measured.items():
        lines.append("| " + " | ".join([name, *(_shown(seconds.get(k)) for k in SHOWN)]) + " |")
    return "\n".join([*lines, ""])


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers such as 00; all of them if not given")
    chosen = parser.parse_args().chapters
    every = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    names = [name for name in every if not chosen or name[:2] in chosen]
    PICTURES.mkdir(parents=True, exist_ok=True)
    measured, faults, loads, began = {}, 0, [], time.monotonic()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        home = Path(folder)
        (home / "files").mkdir()
        with jupyter("jupyterlab", home / "files", home, sys.executable, *EXPOSED) as lab:
            for name in names:
                measured[name], found = watch(browser, lab, name)
                loads.append(os.getloadavg()[0])
                faults += len(found)
                print(
                    name, ", ".join(f"{k} {s:.1f}" for k, s in measured[name].items()), flush=True
                )
                for fault in found:
                    print(f"    {fault}", flush=True)
        browser.close()
    if names == every:
        load = sum(loads) / len(loads)
        REPORT.write_text(report(measured, load, (time.monotonic() - began) / 60), encoding="utf-8")
    sys.exit(f"{faults} faults" if faults else 0)


if __name__ == "__main__":
    main()
