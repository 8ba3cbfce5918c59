"""The doctor: what this machine and this front end can do, and what to do about the rest.

Each check below looks at one thing and returns one line; none of them raises. The table is for
people, `Diagnosis.to_dict` for scripts, and `Diagnosis.can_run` is the verdict.
"""

from __future__ import annotations

import html
import importlib
import json
import os
import shutil
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from vblora_lab.errors import ConfigError
from vblora_lab.runs.frontend import VARIABLE, detect, has_thread_fault, installed_version

Status = Literal["ok", "warning", "error"]

VERSION = metadata.version("vblora-lab")
PYTHON = (3, 11)  # the oldest supported
GIB = 1 << 30
ENOUGH_MEMORY = 1 * GIB  # the first notebook takes about 0.75 GiB (docs/platforms/binder.md)
ENOUGH_DISK = 1 * GIB  # checkpoints of some runs, and a small model from the hub
CGROUP = Path("/sys/fs/cgroup")  # where Linux says what a container may use
SIGNS = {"ok": "✓", "warning": "!", "error": "✗"}
COLOURS = {"ok": "#2e9e4f", "warning": "#d9822b", "error": "#e5484d"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    status: "ok"; "warning", something works worse than it could; "error", the lab can't run.
    found: what there is. advice: what to do about it, empty where all is well.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found; prints as a table, and shows as one in a notebook."""

    checks: tuple[Check, ...]

    @property
    def can_run(self) -> bool:
        """Whether the lab can run here: nothing is an error."""
        return all(check.status != "error" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError names those there are."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r}; there are {', '.join(check.name for check in self.checks)}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "vblora_lab": VERSION,
            "can_run": self.can_run,
            "checks": [asdict(check) for check in self.checks],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @property
    def verdict(self) -> str:
        counts = {s: sum(check.status == s for check in self.checks) for s in SIGNS}
        if counts["error"]:
            return f"The lab can't run here: see {SIGNS['error']}."
        if counts["warning"]:
            return f"The lab runs here. What could be better: see {SIGNS['warning']}."
        return "The lab runs here."

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"vblora_lab {VERSION}"]
        for check in self.checks:
            head = f"{SIGNS[check.status]} {check.name:<{width}}  "
            lines += textwrap.wrap(
                check.found, 98, initial_indent=head, subsequent_indent=" " * len(head)
            )
            indent = " " * len(head) + "→ "
            lines += textwrap.wrap(
                check.advice, 98, initial_indent=indent, subsequent_indent=" " * len(indent)
            )
        return "\n".join([*lines, "", self.verdict])

    def _repr_html_(self) -> str:
        rows = "".join(_row(check) for check in self.checks)
        return (
            '<div style="max-width:60em;line-height:1.5">'
            f"<b>vblora_lab {VERSION}</b>: {html.escape(self.verdict)}"
            '<table style="margin:.6em 0;border-collapse:collapse;color:inherit">'
            f"{rows}</table></div>"
        )


def doctor(*, timeout: float = 2.0) -> Diagnosis:
    """Look at this machine, its Python environment and the front end.

    timeout: seconds after which the model hub counts as out of reach.
    """
    probe = _Probe(timeout)  # asks the hub while the rest is looked at
    checks: list[Callable[[], Check]] = [
        _python,
        _packages,
        _torch,
        _assets,
        _peft,
        _device,
        _memory,
        _disk,
        _front_end,
        _ipykernel,
        partial(_widget_parts, "ipywidgets", "@jupyter-widgets/jupyterlab-manager"),
        partial(_widget_parts, "anywidget", "anywidget"),
        partial(_hub, probe),
        _cache,
    ]
    return Diagnosis(tuple(check() for check in checks))


# --- Python and its packages


def _python() -> Check:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return Check(
            "Python", "error", found, f"Make an environment with Python {wanted} or newer."
        )
    return Check("Python", "ok", found)


def _packages() -> Check:
    """What the lab requires against what is installed, by the lab's own metadata."""
    from packaging.requirements import Requirement  # comes with transformers

    try:
        lines = metadata.requires("vblora-lab") or []
    except metadata.PackageNotFoundError:
        advice = "pip install vblora-lab, or pip install --editable . in its folder."
        return Check("packages", "warning", "vblora-lab is not installed as a package", advice)
    wanted = [Requirement(line) for line in lines]
    wanted = [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong, right = [], []
    for need in wanted:
        version = installed_version(need.name)
        if version is None:
            wrong.append((need, f"{need.name} is missing"))
        elif not need.specifier.contains(version, prereleases=True):
            wrong.append((need, f"{need.name} {version} is not {need.specifier}"))
        else:
            right.append(need)
    if wrong:
        command = " ".join(f'"{need.name}{need.specifier}"' for need, _ in wrong)
        found = "; ".join(text for _, text in wrong)
        return Check("packages", "error", found, f"pip install {command}")
    shown = [f"{name} {installed_version(name)}" for name in ("peft", "transformers", "accelerate")]
    return Check("packages", "ok", f"all {len(right)} in range: {', '.join(shown)}")


def _torch() -> Check:
    try:
        import torch
    except Exception as error:  # a build for other hardware raises more than ImportError
        return Check("torch", "error", _first_line(error), "Install torch anew for this machine.")
    built_for = torch.version.cuda and f"CUDA {torch.version.cuda}"
    built_for = built_for or (torch.version.hip and f"ROCm {torch.version.hip}")
    return Check("torch", "ok", f"{torch.__version__}, built for {built_for or 'the CPU'}")


def _assets() -> Check:
    folder = Path(__file__).parents[1] / "assets" / "mini-opt"
    missing = [
        name
        for name in ("config.json", "model.safetensors", "tokenizer.json")
        if not (folder / name).is_file()
    ]
    if missing:
        found = f"mini-OPT lacks {', '.join(missing)} in {folder}"
        return Check("shipped model", "error", found, "Install vblora-lab anew.")
    return Check("shipped model", "ok", "mini-OPT is here; no network is needed for it")


def _peft() -> Check:
    """Whether PEFT loads and takes this package's classes, which new releases of both can break."""
    try:
        seam = importlib.import_module("vblora_lab.tuner.peft")
        with seam.using():
            pass
    except Exception as error:  # whatever an import may raise
        advice = "Install the versions of peft and transformers that vblora-lab asks for."
        return Check("VB-LoRA in PEFT", "error", _first_line(error), advice)
    return Check("VB-LoRA in PEFT", "ok", "PEFT builds this package's layers when asked to")


# --- the machine


def _device() -> Check:
    try:
        import torch
    except Exception as error:
        return Check(
            "device", "error", f"unknown without torch: {_first_line(error)}", "See torch."
        )
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Check("device", "ok", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    cores, threads = _cores(), torch.get_num_threads()
    found = f"CPU; {_count(cores, 'core')} to use, {_count(threads, 'thread')} in torch"
    if torch.version.cuda:
        found += "; torch finds no GPU"
    if threads > cores:
        advice = f"Set OMP_NUM_THREADS={cores}: threads that wait for a core slow training down."
        return Check("device", "warning", found, advice)
    return Check("device", "ok", found)


def _memory() -> Check:
    try:
        import psutil
    except ImportError:
        return Check("memory", "warning", "unknown", "pip install psutil to have it looked at.")
    here = psutil.virtual_memory()
    free, total = here.available, here.total
    limit = _container_limit()
    if limit is not None and limit < total:  # the machine's numbers are not this process's then
        free, total = min(free, limit - psutil.Process().memory_info().rss), limit
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < ENOUGH_MEMORY:
        advice = "Close other notebooks and kernels; use mini-opt and batches of 8 or fewer."
        return Check("memory", "warning", found, advice)
    return Check("memory", "ok", found)


def _disk() -> Check:
    where = tempfile.gettempdir()
    free = shutil.disk_usage(where).free
    found = f"{free / GIB:.1f} GiB free in {where}"
    if free < ENOUGH_DISK:
        advice = "Free some space, or set TMPDIR to a folder on another disk."
        return Check("disk", "warning", found, advice)
    return Check("disk", "ok", found)


# --- the front end


def _front_end() -> Check:
    try:
        found = detect()
    except ConfigError as error:
        return Check("front end", "error", str(error), f"Unset {VARIABLE}.")
    name = found.name if found.version is None else f"{found.name} {found.version}"
    how = "in the background" if found.runs_threads else "in the foreground"
    return Check("front end", "ok", f"{name}; training runs {how}. {found.why}")


def _ipykernel() -> Check:
    version = installed_version("ipykernel")
    if version is None:
        return Check(
            "ipykernel",
            "warning",
            "not installed: no notebook runs in this environment",
            'pip install "vblora-lab[lab]"',
        )
    if has_thread_fault(version):
        found = (
            f"{version}: a widget that is changed from a plain thread raises LookupError. The "
            "lab's own training thread is not concerned"
        )
        return Check("ipykernel", "warning", found, 'pip install "ipykernel>=7.1", then restart.')
    return Check("ipykernel", "ok", version)


def _widget_parts(package: str, extension: str) -> Check:
    """The kernel's half of a widget library beside the half that Jupyter serves to browsers."""
    version = installed_version(package)
    if version is None:
        return Check(package, "error", "not installed", f"pip install {package}")
    try:
        if detect().name in ("colab", "kaggle", "vscode"):
            return Check(package, "ok", f"{version}; the front end brings its own half")
    except ConfigError:
        pass  # said under "front end"
    served = _served_version(extension)
    if served is None:
        found = f"{version}; no half for the browser in this environment"
        advice = f"If Jupyter is served from here: pip install --force-reinstall {package}"
        if installed_version("jupyter_server") is None:
            return Check(package, "ok", found)
        return Check(package, "warning", found, advice)
    found = f"{version}; browsers are served {served}"
    # jupyterlab-manager 5 is the other half of ipywidgets 8; anywidget counts both halves alike.
    matches = (
        served.split(".")[0] == "5" and version.split(".")[0] == "8"
        if package == "ipywidgets"
        else served.split(".")[:2] == version.split(".")[:2]
    )
    if matches:
        return Check(package, "ok", found)
    advice = f"The halves don't belong together: pip install --upgrade {package}"
    advice += " jupyterlab_widgets" if package == "ipywidgets" else ""
    return Check(package, "warning", found, f"{advice}, then reload the page.")


def _served_version(extension: str) -> str | None:
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:
        return None
    for folder in jupyter_path("labextensions"):
        described = Path(folder, extension, "package.json")
        if described.is_file():
            return str(json.loads(described.read_text(encoding="utf-8"))["version"])
    return None


# --- the model hub


class _Probe:
    """Asks the model hub in a thread of its own: looking up a name can hang past any time limit."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.problem: str | None = f"no answer within {timeout:g} seconds"
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            from huggingface_hub import constants
            from huggingface_hub.utils import get_session

            if constants.HF_HUB_OFFLINE:
                self.problem = "offline, as HF_HUB_OFFLINE says"
            else:
                get_session().head(constants.ENDPOINT, timeout=self.timeout)
                self.problem = None
        except Exception as error:  # whichever HTTP client huggingface_hub uses has its own
            self.problem = _first_line(error)

    def wait(self) -> str | None:
        """What stands between here and the hub; None if it answers."""
        self._thread.join(self.timeout)
        return self.problem


def _hub(probe: _Probe) -> Check:
    problem = probe.wait()
    if problem is None:
        return Check("model hub", "ok", "answers")
    advice = "mini-opt, folders and cached models can be used; for others, go online once."
    return Check("model hub", "warning", f"out of reach: {problem}", advice)


def _cache() -> Check:
    from huggingface_hub import constants, try_to_load_from_cache

    where = constants.HF_HUB_CACHE
    cached = isinstance(try_to_load_from_cache("facebook/opt-125m", "config.json"), str)
    found = f"{where}; OPT-125m is {'there' if cached else 'not there'}"
    nearest = next(path for path in (Path(where), *Path(where).parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        return Check("hub cache", "warning", f"{where} can't be written", "Set HF_HOME elsewhere.")
    return Check("hub cache", "ok", found)


# --- small things


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cores() -> int:
    """Processor cores that this process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, *period = (_read(CGROUP / "cpu.max") or "max").split()  # microseconds in each period
    if quota != "max":
        return max(1, min(cores or 1, round(int(quota) / int(period[0]))))
    return cores or 1


def _container_limit() -> int | None:
    """The memory that Linux control groups, version 2 or 1, leave to this process, in bytes."""
    text = _read(CGROUP / "memory.max") or _read(CGROUP / "memory" / "memory.limit_in_bytes")
    return int(text) if text is not None and text.isdigit() else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _row(check: Check) -> str:
    cell = "text-align:left;vertical-align:top;padding:2px 10px 2px 0"
    colour = COLOURS[check.status]
    advice = f"<br>→ {html.escape(check.advice)}" if check.advice else ""
    return (
        f'<tr><td style="{cell};color:{colour};font-weight:bold" title="{check.status}">'
        f"{SIGNS[check.status]}</td>"
        f'<td style="{cell};font-weight:bold;white-space:nowrap">{html.escape(check.name)}</td>'
        f'<td style="{cell}">{html.escape(check.found)}{advice}</td></tr>'
    )
