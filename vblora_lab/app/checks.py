"""What the doctor looks at, one thing a function; none of them raises."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path

from vblora_lab.app.diagnosis import Check
from vblora_lab.errors import ConfigError
from vblora_lab.runs.frontend import VARIABLE, detect, has_thread_fault, installed_version
from vblora_lab.tables import count

PYTHON = (3, 11)  # the oldest supported
GIB = 1 << 30
ENOUGH_MEMORY = 1 * GIB  # the first notebook takes about 0.75 GiB (docs/platforms/binder.md)
ENOUGH_DISK = 1 * GIB  # checkpoints of some runs, and a small model from the hub
CGROUP = Path("/sys/fs/cgroup")  # where Linux says what a container may use


def check_python() -> Check:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return Check(
            "Python", "error", found, f"Make an environment with Python {wanted} or newer."
        )
    return Check("Python", "ok", found)


def check_packages() -> Check:
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


def check_torch() -> Check:
    try:
        import torch
    except Exception as error:  # a build for other hardware raises more than ImportError
        return Check("torch", "error", _first_line(error), "Install torch anew for this machine.")
    built_for = torch.version.cuda and f"CUDA {torch.version.cuda}"
    built_for = built_for or (torch.version.hip and f"ROCm {torch.version.hip}")
    return Check("torch", "ok", f"{torch.__version__}, built for {built_for or 'the CPU'}")


def check_assets() -> Check:
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


def check_peft() -> Check:
    """Whether PEFT loads and takes this package's classes, which new releases of both can break."""
    try:
        seam = importlib.import_module("vblora_lab.tuner.peft")
        with seam.using():
            pass
    except Exception as error:  # whatever an import may raise
        advice = "Install the versions of peft and transformers that vblora-lab asks for."
        return Check("VB-LoRA in PEFT", "error", _first_line(error), advice)
    return Check("VB-LoRA in PEFT", "ok", "PEFT builds this package's layers when asked to")


def check_device() -> Check:
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
    found = f"CPU; {count(cores, 'core')} to use, {count(threads, 'thread')} in torch"
    if torch.version.cuda:
        found += "; torch finds no GPU"
    if threads > cores:
        advice = f"Set OMP_NUM_THREADS={cores}: threads that wait for a core slow training down."
        return Check("device", "warning", found, advice)
    return Check("device", "ok", found)


def check_memory() -> Check:
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


def check_disk() -> Check:
    where = tempfile.gettempdir()
    free = shutil.disk_usage(where).free
    found = f"{free / GIB:.1f} GiB free in {where}"
    if free < ENOUGH_DISK:
        advice = "Free some space, or set TMPDIR to a folder on another disk."
        return Check("disk", "warning", found, advice)
    return Check("disk", "ok", found)


def check_front_end() -> Check:
    try:
        found = detect()
    except ConfigError as error:
        return Check("front end", "error", str(error), f"Unset {VARIABLE}.")
    name = found.name if found.version is None else f"{found.name} {found.version}"
    how = "in the background" if found.runs_threads else "in the foreground"
    return Check("front end", "ok", f"{name}; training runs {how}. {found.why}")


def check_ipykernel() -> Check:
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


def check_widget_parts(package: str, extension: str) -> Check:
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


class HubProbe:
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


def check_hub(probe: HubProbe) -> Check:
    problem = probe.wait()
    if problem is None:
        return Check("model hub", "ok", "answers")
    advice = "mini-opt, folders and cached models can be used; for others, go online once."
    return Check("model hub", "warning", f"out of reach: {problem}", advice)


def check_cache() -> Check:
    from huggingface_hub import constants, try_to_load_from_cache

    where = constants.HF_HUB_CACHE
    cached = isinstance(try_to_load_from_cache("facebook/opt-125m", "config.json"), str)
    found = f"{where}; OPT-125m is {'there' if cached else 'not there'}"
    nearest = next(path for path in (Path(where), *Path(where).parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        return Check("hub cache", "warning", f"{where} can't be written", "Set HF_HOME elsewhere.")
    return Check("hub cache", "ok", found)


def check_smollm2() -> Check:
    """Whether the language model that is fetched from PyPI is here; the lab runs without it."""
    return _check_fetched("smollm2-135m", "smollm2_place")


def check_minilm() -> Check:
    """Whether the encoder that is fetched from PyPI is here; the lab runs without it."""
    return _check_fetched("minilm-l6", "minilm_place")


def _check_fetched(name: str, its_place: str) -> Check:
    try:
        from vblora_lab import bases
    except Exception as error:  # whatever an import of torch may raise
        return Check(name, "warning", _first_line(error), "See torch.")
    place = getattr(bases, its_place)()
    found = f"in {place}" if place.is_dir() else f"not here; `vblora-lab fetch {name}` gets it"
    return Check(name, "ok", found)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


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
