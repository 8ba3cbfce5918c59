"""Which front end shows the widgets of this process, and how training may run there.

A training panel either trains in a background thread, so that the notebook stays usable, or in the
foreground, where every front end shows its updates. What is known of the front ends:

    JupyterLab, Notebook, Voila   show updates from threads
    VS Code                       shows them, and answers no button while a cell runs
    Colab                         shows updates of the cell that runs, and none from threads
    Kaggle                        not tried: the foreground works everywhere
    nbconvert, nbval              nobody watches; a cell should end when training does

ipykernel 7.0.0 to 7.0.2 knows no parent message in a plain thread, so that setting a trait there
raises `LookupError`. In a thread that runs in ``contextvars.copy_context()`` it works, and
`SteerableRun.start` starts such a thread.

This module imports neither torch nor ipykernel nor IPython: a process that has not loaded IPython
is not in a notebook.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from vblora_lab.errors import ConfigError

Driver = Literal["thread", "foreground"]

VARIABLE = "VBLORA_LAB_DRIVER"  # "thread" or "foreground" overrides what is detected


@dataclass(frozen=True)
class FrontEnd:
    """What shows the output of this process.

    name: "jupyterlab", "notebook", "voila", "jupyter" (a Jupyter server, of which no more is
        known), "vscode", "colab", "kaggle", "nbconvert", "nbval", "kernel" (a kernel that something
        else started), "terminal" or "script".
    version: of the front end, as installed beside this process; None if that can't be known.
    runs_threads: whether it shows what a background thread does to widgets.
    why: the reason for `runs_threads`, one sentence.
    """

    name: str
    version: str | None
    runs_threads: bool
    why: str

    @property
    def driver(self) -> Driver:
        """How to train here: in a background "thread", or in the "foreground"."""
        return "thread" if self.runs_threads else "foreground"


def detect() -> FrontEnd:
    """Find out which front end shows the output of this process.

    Raises ConfigError if the environment variable VBLORA_LAB_DRIVER is neither "thread" nor
    "foreground"; empty or unset, it overrides nothing.
    """
    name, version = _find()
    runs_threads, why = _threads(name)
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "thread", "foreground"):
        raise ConfigError(
            f"the environment variable {VARIABLE} is {wanted!r}; allowed: 'thread', 'foreground', "
            "or unset to let the front end decide."
        )
    if wanted:
        runs_threads, why = wanted == "thread", f"The environment says {VARIABLE}={wanted}."
    return FrontEnd(name, version, runs_threads, why)


def installed_version(package: str) -> str | None:
    """The version of a package beside this one; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def has_thread_fault(version: str) -> bool:
    """Whether this version of ipykernel can't send widget updates from a plain thread."""
    return version.startswith("7.0.")


# Which programs start kernels: the names of commands and of modules run with ``python -m``.
_STARTERS = {
    "jupyter-lab": "jupyterlab",
    "jupyterlab": "jupyterlab",
    "jupyter-notebook": "notebook",
    "notebook": "notebook",
    "voila": "voila",
    "jupyter-voila": "voila",
    "nbconvert": "nbconvert",
    "jupyter-nbconvert": "nbconvert",
    "jupyter-execute": "nbconvert",
    "papermill": "nbconvert",
}


def _find() -> tuple[str, str | None]:
    """Name and version. The most specific marks come first: all of them run Jupyter's kernel."""
    shell = _shell()
    if "google.colab" in sys.modules:
        return "colab", os.environ.get("COLAB_RELEASE_TAG")
    if shell is None:
        # Only an interactive interpreter has a prompt (or a script that was started with -i).
        return ("terminal" if hasattr(sys, "ps1") else "script"), None
    if not hasattr(shell, "kernel"):
        return "terminal", installed_version("ipython")
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle", None
    if "__vsc_ipynb_file__" in shell.user_ns:  # set by VS Code's Jupyter extension
        return "vscode", None
    if starter := _starter():
        return starter, installed_version(starter)
    if "JPY_SESSION_NAME" in os.environ:  # set by a Jupyter server for the notebook's session
        return "jupyter", installed_version("jupyter_server")
    if {"VSCODE_PID", "VSCODE_CWD"} & set(os.environ):
        return "vscode", None
    return "kernel", None


def _threads(name: str) -> tuple[bool, str]:
    if name in ("jupyterlab", "notebook", "voila", "jupyter"):
        return True, "Widgets show what background threads do." + _fault()
    if name == "vscode":
        return True, "Widgets show background threads; buttons wait for running cells." + _fault()
    reasons = {
        "colab": "Colab shows no widget updates from background threads.",
        "kaggle": "Background threads were not tried in Kaggle's editor.",
        "nbval": "Nobody watches: the cell ends when training does.",
        "nbconvert": "Nobody watches: the cell ends when training does.",
        "kernel": "It is not known what shows this kernel's widgets.",
        "terminal": "A terminal shows no widgets.",
        "script": "A script shows no widgets.",
    }
    return False, reasons[name]


def _fault() -> str:
    version = getattr(sys.modules.get("ipykernel"), "__version__", "")
    if not has_thread_fault(version):
        return ""
    return f" (In ipykernel {version}, only those that run in a copied context, as training does.)"


def _shell() -> Any | None:
    """IPython's shell, if this process runs in one."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _starter() -> str | None:
    """Who started this kernel: its parent process, or that one's (Windows has one in between)."""
    try:
        import psutil  # comes with accelerate, but the doctor runs in environments without it too
    except ImportError:
        return None
    try:
        command_lines = [parent.cmdline() for parent in psutil.Process().parents()[:2]]
    except psutil.Error:  # another user's process, or one that has just ended
        return None
    for words in command_lines:
        if any(word.startswith("--nbval") for word in words):  # an option of pytest
            return "nbval"
        names = (os.path.basename(word).removesuffix(".exe") for word in words)
        if found := next((_STARTERS[name] for name in names if name in _STARTERS), None):
            return found
    return None
