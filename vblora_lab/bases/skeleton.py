"""Base models without their weights: a config.json is enough to plan on a model of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.bases.hub import cached_config, check_hub, what_to_do
from vblora_lab.bases.names import ASSETS, MINI_OPT, MINILM, OPT_125M_RANDOM, SMOLLM2
from vblora_lab.errors import BaseModelError

# A config.json tells the class it was made for; these tasks put another head on the same model.
CLASSES_OF_TASKS = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
}


def opt_125m_config(tokenizer: Tokenizer | None = None) -> transformers.OPTConfig:
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


def smollm2_config() -> transformers.LlamaConfig:
    """The config of SmolLM2-135M-Instruct, known without fetching it."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        architectures=["LlamaForCausalLM"],
    )
    config.name_or_path = SMOLLM2
    return config


def minilm_config() -> transformers.BertConfig:
    """The config of all-MiniLM-L6-v2, known without fetching it."""
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
        architectures=["BertModel"],
    )
    config.name_or_path = MINILM
    return config


def load_skeleton(
    name: str | Path = MINI_OPT,
    *,
    task_type: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A base model without its weights, on the meta device: only its config.json is read.

    Args:
        name: "mini-opt", "smollm2-135m", "minilm-l6" or "opt-125m-random" (none of which needs a
            network), a hub name, or a local folder with a config.json.
        task_type: PEFT's name of a task, for the head that the model would get for it.
        dtype: that the weights would have.

    Raises:
        BaseModelError: there is no such config.json, or transformers can't build the model.
    """
    where = str(ASSETS / MINI_OPT) if str(name) == MINI_OPT else str(name)
    known: dict[str, Callable[[], PretrainedConfig]] = {
        OPT_125M_RANDOM: opt_125m_config, SMOLLM2: smollm2_config, MINILM: minilm_config
    }  # fmt: skip
    config = known[where]() if where in known else _read_config(where)
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
    is_here = Path(where).is_dir() or isinstance(cached_config(where), str)
    try:
        if not is_here:
            check_hub(where)
        return AutoConfig.from_pretrained(where, local_files_only=is_here)
    except (OSError, ValueError) as error:
        if Path(where).is_dir():
            raise BaseModelError(
                f"the folder {where!r} has no config.json of a model that transformers knows"
            ) from error
        raise BaseModelError(what_to_do(where)) from error
