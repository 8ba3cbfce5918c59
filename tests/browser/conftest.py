"""One Chromium and one server of each kind for all browser tests.

Without a Chromium (or a Notebook 7) they are skipped, unless it is required.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser_lab import CHROMIUM_FLAGS, EXPOSED, Jupyter, chromium, jupyter
from widget_page import Open

REQUIRED = os.environ.get("VBLORA_LAB_REQUIRE_BROWSER") == "1"


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        _missing(f"Playwright is not installed: {error}")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        except Error as error:
            _missing(f"no Chromium starts (VBLORA_LAB_CHROMIUM names one): {error}")
        yield browser
        browser.close()


def _missing(reason: str) -> None:
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def servers(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """`servers("jupyterlab")` and `servers("notebook")`, started when they are first asked for."""
    with ExitStack() as stack:
        started: dict[str, Jupyter] = {}

        def server(application: str) -> Jupyter:
            if application not in started:
                if find_spec(application) is None:
                    _missing(f"the package {application} is not installed")
                home = tmp_path_factory.mktemp(application)
                (home / "files").mkdir()
                found = subprocess.run([sys.executable, "-c", "import vblora_lab"], cwd=home)
                assert found.returncode == 0, "the kernel needs the package: pip install -e ."
                more = EXPOSED if application == "jupyterlab" else ()
                started[application] = stack.enter_context(
                    jupyter(application, home / "files", home, sys.executable, *more)
                )
            return started[application]

        yield server


@pytest.fixture
def lab(servers) -> Iterator[Jupyter]:
    """The JupyterLab; what runs in it ends with the test."""
    yield servers("jupyterlab")
    servers("jupyterlab").close_kernels()


@pytest.fixture(params=["jupyterlab", pytest.param("notebook", marks=pytest.mark.long)])
def front_end(request, servers) -> Iterator[Jupyter]:
    """Both, one after the other."""
    yield servers(request.param)
    servers(request.param).close_kernels()


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
