"""Where this user's fetched models are kept, and how they come there once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from vblora_lab.errors import BaseModelError

VARIABLE = "VBLORA_LAB_CACHE"


def cache_folder() -> Path:
    """The folder for what is fetched; it need not exist.

    The environment variable VBLORA_LAB_CACHE names it. Otherwise it is the lab's own in the hub
    client's folder for the files of other libraries (HF_ASSETS_CACHE, below HF_HOME): whoever moved
    that one to a larger disk, or has no home folder to write in, has done so once for both.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser().absolute()
    return Path(constants.HF_ASSETS_CACHE) / "vblora_lab"


@contextmanager
def making(place: Path) -> Iterator[bool]:
    """A block that makes the folder of a model; whether there is anything to do.

    Other processes that want the model wait meanwhile, and then find it there. What killed ones
    left half made in the folder above is cleared away first.

    Raises:
        BaseModelError: the block, or this, can't write there; the message says what to do.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / ".lock", fallback_to_soft=False):
            if place.is_dir():  # another process made it meanwhile
                yield False
                return
            for left in place.parent.glob(".*.new"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield True
    except BaseModelError:
        raise
    except OSError as error:
        raise BaseModelError(
            f"{place.name!r} can't be kept in {str(place.parent)!r}: {error}. Make room there, or "
            f"set {VARIABLE} to a folder that can be written"
        ) from error
