"""Watch a newcomer go through the course: `python tools/watch.py`, or name chapters: `... 00 03`.

A JupyterLab is started, and in a headless Chromium each notebook is opened, run cell by cell, and
played with: what can be pressed is pressed, the page is loaded again, cells are run again in the
same kernel, from the last to the first if they can, and the kernel is restarted. Pictures, light
and dark, 1400 and 1024 pixels wide, go to build/watched; look at them. It fails where a cell fails,
the console has an error, a button changes nothing, a widget is lost, an output is wider than its
place, printed lines break, and where text is cut or has too little contrast. How long each first
result took goes to the chapter's row of docs/platforms/watched.md.

The acts of each chapter are in tools/watched/chapters.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "tools" / "watched")]
from browser_lab import CHROMIUM_FLAGS, EXPOSED, Jupyter, chromium, jupyter  # noqa: E402
from chapters import AFTERWARDS, FROM_THE_TOP, MEANWHILE, ONLY_ONCE  # noqa: E402
from lab import Newcomer  # noqa: E402
from report import report, this_machine  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
PICTURES = ROOT / "build" / "watched"
REPORT = ROOT / "docs" / "platforms" / "watched.md"
LOOK_FOR = ["wide", "cut", "wrapped", "faint", "lost"]


def watch(browser: Any, lab: Jupyter, name: str) -> tuple[dict[str, float], list[str]]:
    """Go through one notebook: seconds by what they were for, and what was wrong."""
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", lab.files)
    newcomer = Newcomer(browser, lab, name)
    seconds = {"ready": newcomer.ready_after}
    loads = [os.getloadavg()[0]]
    try:
        seconds |= read(newcomer)
        for act in AFTERWARDS.get(name[:2], []):
            do(newcomer, act, seconds)
        loads.append(os.getloadavg()[0])
        newcomer.pictures(PICTURES, LOOK_FOR)
        newcomer.reload()
        for cell in newcomer.ids()[:: 1 if name[:2] in FROM_THE_TOP else -1]:
            newcomer.run(cell, refused=ONLY_ONCE.get((name[:2], cell), ""))
        seconds["restart"] = newcomer.restart()
    except (Error, RuntimeError) as error:
        newcomer.fault(f"stopped: {error}")
        newcomer.page.screenshot(path=PICTURES / f"{name[:2]}-stopped.png")
    loads.append(os.getloadavg()[0])
    newcomer.close()
    lab.close_kernels()
    return seconds | {"load": sum(loads) / len(loads)}, list(newcomer.faults)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers such as 00; all of them if not given")
    chosen = parser.parse_args().chapters
    every = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    names = [name for name in every if not chosen or name[:2] in chosen]
    PICTURES.mkdir(parents=True, exist_ok=True)
    faults = 0
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        home = Path(folder)
        (home / "files").mkdir()
        # Where a chapter looks for what was measured: beside the folder of the notebooks.
        (home / "benchmarks").symlink_to(ROOT / "benchmarks")
        with jupyter("jupyterlab", home / "files", home, sys.executable, *EXPOSED) as lab:
            for name in names:
                measured, found = watch(browser, lab, name)
                faults += len(found)
                before = REPORT.read_text(encoding="utf-8") if REPORT.exists() else ""
                page = report(before, {name: measured}, every, this_machine())
                REPORT.write_text(page, encoding="utf-8")
                print(name, ", ".join(f"{k} {s:.1f}" for k, s in measured.items()), flush=True)
                for fault in found:
                    print(f"    {fault}", flush=True)
        browser.close()
    sys.exit(f"{faults} faults" if faults else 0)


if __name__ == "__main__":
    main()
