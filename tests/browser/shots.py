"""Takes the pictures in docs/images, and says how far two pictures are apart.

Two machines draw the same letters with other pixels, and lines of them a pixel higher or lower, so
a picture is compared in blocks of a few letters. What a machine has of fonts doesn't matter: the
pages use those that matplotlib brings.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import gallery
import matplotlib
import numpy as np
from browser_lab import LONG, Jupyter, run_cell
from PIL import Image
from widget_page import Open, theme_variables

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDTHS = {"": 1160, "-narrow": 420}  # end of the name: width of the widget in CSS pixels
THEMES = {"light": False, "dark": True}
PLAIN = {
    "many-users": gallery.many_users, "whose-text": gallery.whose_text,
    "sub-vector": gallery.sub_vector,
    "config-explorer": gallery.config_explorer, "bank-heatmap": gallery.bank_heatmap,
}  # fmt: skip
PANELS = {"live-training": gallery.completed_training, "training-studio": gallery.training_studio}
NAMES = [
    f"{widget}-{theme}{end}" for widget in (*PLAIN, *PANELS) for theme in THEMES for end in WIDTHS
]
MARGIN = 20  # of a plain page
COLOURS = 256  # of a stored picture; fewer show as bands in a colour scale
BLOCK = 16  # pixels on a side
FAR = 24  # of 255: how much the mean colour of a block may differ
TOLERANCE = 0.003  # how many blocks may differ by more
SHOW_PANELS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import gallery, ipywidgets
ipywidgets.VBox([{", ".join(f"gallery.{make.__name__}()" for make in PANELS.values())}])
"""


def fonts() -> str:
    """CSS by which Jupyter's variables name fonts that are the same on every machine."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = {
        ("Shown", "normal"): "DejaVuSans", ("Shown", "bold"): "DejaVuSans-Bold",
        ("Shown Mono", "normal"): "DejaVuSansMono", ("Shown Mono", "bold"): "DejaVuSansMono-Bold",
    }  # fmt: skip
    faces = "".join(
        f'@font-face {{ font-family: "{family}"; font-weight: {weight}; src: url("data:font/ttf;'
        f'base64,{base64.b64encode((folder / f"{file}.ttf").read_bytes()).decode()}") }}\n'
        for (family, weight), file in files.items()
    )
    return faces + (
        ':root, body { --jp-ui-font-family: "Shown" !important;'
        ' --jp-code-font-family: "Shown Mono" !important }\n'
    )


def plain(browser, widget, dark: bool, end: str, css: str = "") -> bytes:
    """A picture of a widget in a page of its own. `css`: rules to follow its own."""
    page = Open(browser, widget, dark=dark, css=fonts() + theme_variables(dark) + css).page
    page.evaluate("document.fonts.ready")
    # A new width draws the canvas again, with fonts that are there now.
    page.set_viewport_size({"width": WIDTHS[end] + 2 * MARGIN, "height": 700})
    settle(page)
    png = page.screenshot(full_page=True)
    page.context.close()
    return png


def panels(browser, lab: Jupyter) -> Iterator[tuple[str, bytes]]:
    """Names and pictures of the panels, in JupyterLab."""
    lab.write("panels", SHOW_PANELS)
    lab.use_theme(dark=False)
    page = lab.open(browser, "panels")
    page.add_style_tag(content=fonts())
    run_cell(page)
    page.locator(".vblora-panel").nth(len(PANELS) - 1).wait_for(timeout=LONG)
    page.evaluate("document.fonts.ready")
    page.keyboard.press("Control+b")  # JupyterLab's side bar makes room
    for theme, dark in THEMES.items():
        if dark:
            page.set_viewport_size({"width": 1280, "height": 900})  # for menus and submenus
            page.get_by_role("menuitem", name="Settings").click()
            page.locator(".lm-Menu-item", has_text="Theme").first.hover()
            page.locator(".lm-Menu-item", has_text=re.compile("^JupyterLab Dark$")).click()
            page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
        for end, width in WIDTHS.items():
            for i, widget in enumerate(PANELS):
                panel = page.locator(".vblora-panel").nth(i)
                fit(page, panel, width)
                yield f"{widget}-{theme}{end}", panel.screenshot()
    page.context.close()


def fit(page, panel, width: int) -> None:
    """Make the window so large that the panel is that wide, and all of it in view."""
    for _ in range(2):  # the second time, what a scroll bar took is known
        panel.wait_for(timeout=LONG)
        box, window = panel.bounding_box(), page.viewport_size
        page.set_viewport_size(
            {"width": round(window["width"] + width - box["width"]), "height": 7000}
        )
        settle(page)


def settle(page) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate(
        "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r))))"
    )


def store(name: str, png: bytes) -> Path:
    """Write a picture with a palette: less than half the size, and it stays in git."""
    path = IMAGES / f"{name}.png"
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path


def difference(name: str, png: bytes) -> float:
    """Which part of the picture isn't as it is stored: 0 for nothing, 1 for another size.

    A height may differ by less than a block: lines of letters are not as tall everywhere.
    """
    stored, now = (
        np.asarray(Image.open(file).convert("RGB"), float)
        for file in (IMAGES / f"{name}.png", io.BytesIO(png))
    )
    height = min(len(stored), len(now))
    if stored.shape[1] != now.shape[1] or max(len(stored), len(now)) >= height + BLOCK:
        return 1.0
    apart = np.abs(blocks(stored[:height]) - blocks(now[:height])).max(axis=-1)
    return float((apart > FAR).mean())


def blocks(picture: np.ndarray) -> np.ndarray:
    """The mean colours of its blocks, (height / BLOCK, width / BLOCK, 3)."""
    height, width = (size // BLOCK for size in picture.shape[:2])
    whole = picture[: height * BLOCK, : width * BLOCK]
    return whole.reshape(height, BLOCK, width, BLOCK, 3).mean(axis=(1, 3))
