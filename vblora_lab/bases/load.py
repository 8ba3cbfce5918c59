"""Base models: mini-OPT, which ships with the lab, and anything that a model hub or cache has."""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
import transformers
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import get_session
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from vblora_lab.errors import BaseModelError

MINI_OPT = "mini-opt"
OPT_125M = "facebook/opt-125m"
OPT_125M_RANDOM = "opt-125m-random"
# A config.json tells the class it was made for; these tasks put another head on the same model.
CLASSES_OF_TASKS = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
}
_ASSETS = Path(__file__).resolve().parents[1] / "assets"


class Base(NamedTuple):
    """A causal language model, pretrained as a rule, and its tokenizer (which pads on the left)."""

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
) -> Base:
    """Load a base model and its tokenizer, ready for training an adapter on.

    Args:
        name: "mini-opt" (shipped, needs no network), a hub name such as "facebook/opt-125m" (from
            the hub, or from the local cache), a local folder, or "opt-125m-random" (needs no
            network: the architecture of OPT-125m with random weights and mini-OPT's tokenizer).
        device: where to put it; a CUDA device where there is one, by default.
        dtype: of the weights in memory.

    Raises:
        BaseModelError: it is neither here nor to be had; the message says what to do.
    """
    where = str(_ASSETS / MINI_OPT) if str(name) == MINI_OPT else str(name)
    model, tokenizer = _random_opt_125m() if where == OPT_125M_RANDOM else _read(where)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    # Weights are read as they are stored and converted one by one: never two models in memory.
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(device, dtype)  # type: ignore[arg-type]
    return Base(model, tokenizer)


def _read(where: str) -> tuple[PreTrainedModel, Tokenizer]:
    """A model, in the dtype in which it is stored, and its tokenizer."""
    # A cached model is read from its folder: by its name, the hub would still be asked for things.
    folder = Path(where) if Path(where).is_dir() else _cached(where)
    try:
        if folder is None:
            _check_hub(where)
        with _progress_bars(folder is None):
            model = AutoModelForCausalLM.from_pretrained(
                folder or where, dtype="auto", weights_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder or where, padding_side="left")
    except (OSError, ValueError, UnpicklingError) as error:
        raise BaseModelError(_what_to_do(where)) from error
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = where
    return model, tokenizer


def _random_opt_125m() -> tuple[PreTrainedModel, Tokenizer]:
    """The same random weights every time."""
    _, tokenizer = _read(str(_ASSETS / MINI_OPT))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.OPTForCausalLM(_opt_125m_config(tokenizer))
    model.name_or_path = OPT_125M_RANDOM
    return model, tokenizer


def _opt_125m_config(tokenizer: Tokenizer | None = None) -> transformers.OPTConfig:
    """The config of OPT-125m, for a tokenizer whose special tokens may be others."""
    ids = ("pad_token_id", "bos_token_id", "eos_token_id")
    return transformers.OPTConfig(
        vocab_size=50272,
        hidden_size=768,
        word_embed_proj_dim=768,
        ffn_dim=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
        architectures=["OPTForCausalLM"],
        **({} if tokenizer is None else {name: getattr(tokenizer, name) for name in ids}),
    )


def load_skeleton(
    name: str | Path = MINI_OPT,
    *,
    task_type: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A base model without its weights, on the meta device: only its config.json is read.

    Args:
        name: "mini-opt", "opt-125m-random", a hub name, or a local folder with a config.json.
        task_type: PEFT's name of a task, for the head that the model would get for it.
        dtype: that the weights would have.

    Raises:
        BaseModelError: there is no such config.json, or transformers can't build the model.
    """
    where = str(_ASSETS / MINI_OPT) if str(name) == MINI_OPT else str(name)
    config = _opt_125m_config() if where == OPT_125M_RANDOM else _read_config(where)
    return skeleton_of(config, task_type=task_type, dtype=dtype)


def skeleton_of(
    config: PretrainedConfig,
    *,
    task_type: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The model that a transformers config describes, on the meta device: it has no weights.

    A config that names no class, as one made in Python, gives a causal language model if it can.

    Args:
        config: of a model of any size.
        task_type, dtype: as for `load_skeleton`.

    Raises:
        BaseModelError: transformers can't build the model.
    """
    own_class = getattr(transformers, (config.architectures or [""])[0], None)
    is_language_model = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    usual_class = AutoModelForCausalLM if is_language_model else transformers.AutoModel
    auto_class = CLASSES_OF_TASKS.get(task_type or "", usual_class)
    try:
        with torch.device("meta"):
            if own_class is not None and task_type not in CLASSES_OF_TASKS:
                return own_class._from_config(config, dtype=dtype)
            return auto_class.from_config(config, dtype=dtype)
    except (ValueError, ImportError) as error:  # no such head; a backend that isn't installed
        kind = f" for task_type={task_type!r}" if task_type in CLASSES_OF_TASKS else ""
        name = config.name_or_path or type(config).__name__
        raise BaseModelError(
            f"transformers can't build {name!r} (model_type {config.model_type!r}){kind}"
        ) from error


def _read_config(where: str) -> PretrainedConfig:
    is_here = Path(where).is_dir() or isinstance(_cached_config(where), str)
    try:
        if not is_here:
            _check_hub(where)
        return AutoConfig.from_pretrained(where, local_files_only=is_here)
    except (OSError, ValueError) as error:
        if Path(where).is_dir():
            raise BaseModelError(
                f"the folder {where!r} has no config.json of a model that transformers knows"
            ) from error
        raise BaseModelError(_what_to_do(where)) from error


def _cached_config(name: str) -> str | object | None:
    """The path of a hub model's config.json, if this machine has it; else None or a marker."""
    try:
        return try_to_load_from_cache(name, "config.json")
    except ValueError:  # no valid hub name
        return None


def share_weights(model: nn.Module) -> nn.Module:
    """A second model over the same weight memory, so that adapting one leaves the other as it is.

    Modules are copied, and each parameter becomes a new `nn.Parameter` on the old storage; buffers
    are copied. The biases, which a config can ask to train, are copied too. Only writing into a
    shared weight in place would be seen by both.
    """
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        data = parameter.data.clone() if name.endswith("bias") else parameter.data
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _cached(name: str) -> Path | None:
    """The folder of a model in this machine's cache of the hub, if its weights are there too."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
    has_weights = any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin"))
    return folder if has_weights and (folder / "config.json").exists() else None


def _check_hub(name: str) -> None:
    """Raise `BaseModelError` at once where the hub is out of reach, instead of a minute later."""
    if _meant(name) is not None:
        raise BaseModelError(_what_to_do(name))
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # whichever HTTP client huggingface_hub uses has its own errors
        raise BaseModelError(_what_to_do(name)) from error


@contextlib.contextmanager
def _progress_bars(wanted: bool) -> Iterator[None]:
    """Loading from a local folder takes no time worth a bar."""
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
    known = {MINI_OPT: MINI_OPT, OPT_125M_RANDOM: OPT_125M_RANDOM, "opt-125m": OPT_125M}
    written = name.lower().replace("_", "-")
    close = difflib.get_close_matches(written, known, n=1, cutoff=0.7)
    return known[close[0]] if close and "/" not in name else None


def _what_to_do(name: str) -> str:
    if _meant(name) is not None:
        return f"no base model is called {name!r}; did you mean {_meant(name)!r}?"
    if Path(name).is_dir():
        return (
            f"the folder {name!r} does not hold a causal language model that transformers can "
            "load; it needs at least config.json, the weights (model.safetensors) and a tokenizer"
        )
    return (
        f"{name!r} is not in the local cache ({constants.HF_HUB_CACHE}) and could not be fetched "
        "from the model hub. Check the name; or go online once and call load_base again; or copy "
        "the model's folder to this machine and pass its path; or use the model that ships with "
        f"the lab, load_base({MINI_OPT!r}), or the architecture of OPT-125m with random weights, "
        f"load_base({OPT_125M_RANDOM!r}): its speed and memory are real, its texts are not."
    )
