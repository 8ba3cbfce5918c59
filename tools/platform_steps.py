"""Steps of `platforms.py`: copies of the repository, environments, and commands within limits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """A finished command. peak: bytes, of all its processes together."""

    status: int
    seconds: float
    peak: int
    output: str


def run_within(
    command: Sequence[str | Path],
    *,
    memory: int,
    cores: int,
    cwd: Path,
    env: Mapping[str, str],
    every: float = 0.05,
) -> Run:
    """Run a command on so many cores; kill it once it takes more than `memory` bytes.

    Memory is the proportional set size of the command and all that it started, measured every
    `every` seconds. A container would be charged for that, and for files in the cache.
    """
    import psutil

    allowed = sorted(os.sched_getaffinity(0))[:cores]
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env=dict(env),
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        root = psutil.Process(process.pid)
        while process.poll() is None:
            family = _family(root)
            peak = max(peak, sum(_memory(member) for member in family))
            if peak > memory:
                for member in reversed(family):
                    member.kill()
                process.wait()
                output.write(f"\nkilled: {peak / MIB:.0f} MiB are more than {memory / MIB:.0f}\n")
            time.sleep(every)
        output.seek(0)
        return Run(process.returncode, time.monotonic() - start, peak, output.read())


def _family(root) -> list:
    import psutil

    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process) -> int:
    import psutil

    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has just ended
        return 0


def checkout(folder: Path) -> Path:
    """A copy of the tracked files, as they are now."""
    listed = say(["git", "ls-files", "-z"], cwd=ROOT)
    for file in filter(None, listed.split("\0")):
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, folder / file)
    return folder


def find_python(version: str) -> str | None:
    """A command that starts this Python, such as "3.13"; None if there is none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    command = shutil.which(f"python{version}")
    # A version manager's stand-in may do nothing but say that this version is not chosen.
    if command and subprocess.run([command, "--version"], capture_output=True).returncode == 0:
        return command
    return None


def make_environment(
    folder: Path, requirements: Sequence[str], interpreter: str = sys.executable
) -> Path:
    """A new virtual environment with these requirements; returns its python."""
    say([interpreter, "-m", "venv", folder], cwd=ROOT)
    python = folder / "bin" / "python"
    say([python, "-m", "pip", "install", "--quiet", *requirements], cwd=ROOT)
    return python


def use_reachable_index(requirements: Path) -> str:
    """Drop the extra index from copied requirements if it can't be reached; says which was used."""
    text = requirements.read_text(encoding="utf-8")
    line = re.search(r"^--extra-index-url (\S+)$", text, re.MULTILINE)
    assert line, "the requirements name no index for torch"
    try:
        urllib.request.urlopen(f"{line[1]}/torch/", timeout=10).close()
    except OSError:
        requirements.write_text(text.replace(line[0], ""), encoding="utf-8")
        return "PyTorch's index was out of reach; torch came from the configured one."
    return "torch came from PyTorch's index for CPUs."


def convert(notebook: Path, out: Path) -> list[str]:
    words = ["-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(out)]
    return [*words, "--ExecutePreprocessor.timeout=900", str(notebook)]


def chosen(repo: Path, numbers: Sequence[str]) -> list[Path]:
    """The notebooks that begin with these numbers; each must be there."""
    found = []
    for number in numbers:
        paths = list((repo / "notebooks").glob(f"{number}-*.ipynb"))
        assert len(paths) == 1, f"{len(paths)} notebooks begin with {number}-"
        found += paths
    return found


def check(result: Run, name: str) -> None:
    print(f"{name}: {result.seconds:.0f} s, peak {result.peak / MIB:.0f} MiB", flush=True)
    if result.status:
        sys.exit(f"{result.output[-6000:]}\n{name} failed with status {result.status}")


def say(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it prints; what it prints is shown if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nfailed: {' '.join(words)[:300]}")
    return done.stdout


def outside_environment() -> dict[str, str]:
    """This process's environment, without what would lead into this checkout."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "JUPYTER", "IPYTHON", "VBLORA_LAB", "HF_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def version_of(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return say([python, "-I", "-c", code], cwd=ROOT).strip()


def version_of_python(python: Path) -> str:
    return say([python, "--version"], cwd=ROOT).split()[1]


def size(folder: Path) -> int:
    """Bytes that a folder takes on disk; what pip cached meanwhile doesn't count."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(
        f.stat().st_blocks * 512 for f in files if "pip" not in f.relative_to(folder).parts[:2]
    )
