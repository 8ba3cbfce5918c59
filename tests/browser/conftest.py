"""One Chromium for all browser tests. Without any they are skipped, unless one is required."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_lab import CHROMIUM_FLAGS, chromium
from widget_page import Open

REQUIRED = os.environ.get("VBLORA_LAB_REQUIRE_BROWSER") == "1"


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        _no_browser(f"Playwright is not installed: {error}")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        except Error as error:
            _no_browser(f"no Chromium starts (VBLORA_LAB_CHROMIUM names one): {error}")
        yield browser
        browser.close()


def _no_browser(reason: str) -> None:
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: $VBLORA_LAB_SCREENSHOTS, or a temporary folder."""
    named = os.environ.get("VBLORA_LAB_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def open_page(browser):
    opened = []

    def open_widget(widget, **options):
        opened.append(Open(browser, widget, **options))
        return opened[-1]

    yield open_widget
    for page in opened:
        page.context.close()
        assert page.errors == []
