"""Where this user's fetched models are kept."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import constants

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
