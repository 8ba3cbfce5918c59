"""Every widget looks as it does in docs/images: wide and narrow, light and dark."""

from __future__ import annotations

import pytest
import shots
from browser_lab import CHROMIUM_FLAGS, chromium

REFRESH = "look at it, and if it is right: python tools/images.py"


@pytest.fixture(scope="module")
def panels(browser, servers):
    lab = servers("jupyterlab")
    yield dict(shots.panels(browser, lab))
    lab.close_kernels()


@pytest.fixture(scope="module")
def widgets():
    return {name: make() for name, make in shots.PLAIN.items()}


def kept(png, name, folder):
    (folder / f"{name}.png").write_bytes(png)
    return shots.difference(name, png)


@pytest.mark.parametrize("end", shots.WIDTHS, ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", shots.THEMES)
@pytest.mark.parametrize("widget", shots.PLAIN)
def test_a_widget_looks_as_in_the_docs(browser, widgets, screenshots, widget, theme, end):
    png = shots.plain(browser, widgets[widget], shots.THEMES[theme], end)
    assert kept(png, f"{widget}-{theme}{end}", screenshots) <= shots.TOLERANCE, REFRESH


@pytest.mark.parametrize("end", shots.WIDTHS, ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", shots.THEMES)
@pytest.mark.parametrize("widget", shots.PANELS)
def test_a_panel_looks_as_in_the_docs(panels, screenshots, widget, theme, end):
    name = f"{widget}-{theme}{end}"
    assert kept(panels[name], name, screenshots) <= shots.TOLERANCE, REFRESH


BROKEN = {
    "no rules for the parts": ".vblora-chart, .vblora-chart * { all: revert }",
    "views below each other": ".vblora-linked { display: block }",
    "legend over the title": ".vblora-chart-head { display: block; height: 20px }",
    "other colours": ".vblora-chart { --vblora-line: #999; --vblora-accent: #999 }",
    "a view is missing": ".vblora-view-sharing > * { visibility: hidden }",
}


@pytest.mark.parametrize("css", BROKEN.values(), ids=BROKEN)
def test_a_broken_stylesheet_is_noticed(browser, widgets, css):
    png = shots.plain(browser, widgets["bank-heatmap"], dark=False, end="", css=css)
    assert shots.difference("bank-heatmap-light", png) > shots.TOLERANCE


def test_letters_of_another_machine_are_not(browser, widgets):
    flags = ["--font-render-hinting=none", "--disable-font-subpixel-positioning"]
    other = browser.browser_type.launch(executable_path=chromium(), args=[*CHROMIUM_FLAGS, *flags])
    for widget, shown in widgets.items():
        png = shots.plain(other, shown, dark=False, end="")
        assert png != shots.plain(browser, shown, dark=False, end="")
        assert shots.difference(f"{widget}-light", png) <= shots.TOLERANCE
    other.close()


def test_stored_pictures_are_small():
    assert max((shots.IMAGES / f"{name}.png").stat().st_size for name in shots.NAMES) < 150_000
