"""Jupyter servers that belong to the tests, and a Chromium to look at them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "vblora-lab-browser-test"
EXPOSED = ("--LabApp.expose_app_in_browser=True",)  # JupyterLab as `jupyterapp`, for page scripts
LONG = 120_000  # milliseconds: for a kernel's first imports on a busy machine


def chromium() -> str | None:
    """Path of a Chromium, or None to let Playwright use one of its own."""
    named = os.environ.get("VBLORA_LAB_CHROMIUM")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return named or next((path for path in found if path), None)


@dataclass(frozen=True)
class Jupyter:
    """A running server.

    application: "jupyterlab", or "notebook" for Notebook 7.
    files: the folder that it serves.
    """

    application: str
    address: str
    files: Path

    def write(self, name: str, *cells: str) -> Path:
        """A notebook of code cells in the served folder."""
        code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
        notebook = {
            "cells": [
                {**code, "id": f"cell-{i}", "source": text.strip()} for i, text in enumerate(cells)
            ],
            "metadata": {
                "kernelspec": {
                    "display_name": "Python 3", "language": "python", "name": "python3"
                }
            },
            "nbformat": 4, "nbformat_minor": 5,
        }  # fmt: skip
        path = self.files / f"{name}.ipynb"
        path.write_text(json.dumps(notebook), encoding="utf-8")
        return path

    def open(
        self,
        browser: Any,
        name: str,
        *,
        on_page: Callable[[Any], None] = lambda _: None,
        **context: Any,
    ) -> Any:
        """A notebook in a page of its own, with an idle kernel. Close `page.context` at the end.

        on_page: gets the page before anything is loaded into it.
        """
        where = (
            f"lab/workspaces/{name}/tree" if self.application == "jupyterlab" else "notebooks"
        )  # a workspace of its own: JupyterLab would open there what was open before
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}} | context)
        page = page.new_page()
        on_page(page)
        page.set_default_timeout(30_000)
        page.goto(f"{self.address}/{where}/{name}.ipynb?token={TOKEN}")
        wait_until_idle(page)
        return page

    def close_kernels(self) -> None:
        """End what the notebooks left running: kernels take 700 MB each."""
        for session in self._ask("GET", "sessions"):
            self._ask("DELETE", f"sessions/{session['id']}")

    def use_theme(self, dark: bool) -> None:
        """For pages that are opened from now on."""
        theme = {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}
        self._ask(
            "PUT", "settings/@jupyterlab/apputils-extension:themes", {"raw": json.dumps(theme)},
            at="lab/api",
        )  # fmt: skip

    def _ask(self, method: str, what: str, body: Any = None, at: str = "api") -> Any:
        request = urllib.request.Request(
            f"{self.address}/{at}/{what}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None


def wait_until_idle(page: Any) -> None:
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=LONG)


def run_cell(page: Any, number: int = 0) -> None:
    """Run one cell of the notebook, without waiting for its end.

    Notebook 7 shows its cells before it knows its shortcuts, and knows these before its kernel: the
    key is pressed until it is heard, and whoever asks which kernel is given the first choice.
    """
    from playwright.sync_api import TimeoutError as NotYet

    prompt = page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".jp-InputPrompt").first
    before = prompt.inner_text()
    heard = """([number, before]) => {
      const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[number];
      const text = cell?.querySelector(".jp-InputPrompt")?.innerText ?? "";
      return /[*0-9]/.test(text) && text !== before;
    }"""
    asked = page.locator(".jp-Dialog", has_text="kernel").locator(".jp-mod-accept")
    for _ in range(30):
        try:
            prompt.click(timeout=2000)
            page.keyboard.press("Control+Enter")
            page.wait_for_function(heard, arg=[number, before], timeout=2000)
            return
        except NotYet:
            if asked.count():
                asked.click()
    raise RuntimeError(f"cell {number} can't be run")


def picture(canvas: Any) -> str:
    """What is drawn on a canvas, as text to compare."""
    return canvas.evaluate("canvas => canvas.toDataURL()")


def wait_for_another_picture(canvas: Any, before: str) -> None:
    """Wait until a canvas no longer shows `before`: panels draw after they have counted a step."""
    canvas.page.wait_for_function(
        "([canvas, before]) => canvas.toDataURL() !== before",
        arg=[canvas.element_handle(), before],
        timeout=LONG,
    )


def steps_told(page: Any) -> int:
    """How many steps the panel of a training says are done."""
    return int(page.locator(".vblora-steps").inner_text().split(" ")[1])


def wait_for_step(page: Any, step: int) -> int:
    """Wait until the panel tells of that many steps; how many it tells of then."""
    page.wait_for_function(
        """step => {
          const text = document.querySelector(".vblora-steps")?.textContent ?? "";
          return Number(text.split(" ")[1]) >= step;
        }""",
        arg=step,
        timeout=LONG,
    )
    return steps_told(page)


@contextmanager
def jupyter(
    application: str, files: Path, home: Path, python: str = sys.executable, *options: str
) -> Iterator[Jupyter]:
    """Serve `files` from a free local port until the block ends.

    All of Jupyter's own files go below `home`. options: further ones of the command.
    """
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        python, "-m", application, "--no-browser", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={files}",
        f"--IdentityProvider.token={TOKEN}", *options,
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    with open(home / "server.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(server, address, home / "server.log")
        yield Jupyter(application, address, files)
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError(f"Jupyter did not start:\n{log.read_text(errors='replace')[-4000:]}")
