"""Take the pictures of the widgets in docs/images anew: `python tools/images.py`.

    python tools/images.py --record    # first train the runs that they show, two minutes

Look at them before you commit them. What they show is in tests/browser/gallery.py; a test there
compares them with how the widgets look.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
import gallery
import shots
from browser_lab import CHROMIUM_FLAGS, chromium, jupyter


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="train first")
    if parser.parse_args().record:
        gallery.record()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        for widget, make in shots.PLAIN.items():
            shown = make()
            for theme, dark in shots.THEMES.items():
                for end in shots.WIDTHS:
                    keep(f"{widget}-{theme}{end}", shots.plain(browser, shown, dark, end))
        home = Path(folder)
        (home / "files").mkdir()
        with jupyter("jupyterlab", home / "files", home) as lab:
            for name, png in shots.panels(browser, lab):
                keep(name, png)
            lab.close_kernels()
        browser.close()


def keep(name: str, png: bytes) -> None:
    path = shots.store(name, png)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
