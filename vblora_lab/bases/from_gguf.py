"""A Llama in a GGUF file, as a folder that transformers loads by itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.errors import BaseModelError, MissingExtraError


def check_gguf() -> None:
    """Raise `MissingExtraError` if the package that reads GGUF is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            "the first load of this model reads a GGUF file, which needs the package gguf: "
            'pip install "vblora-lab[smollm2]"'
        )


def convert(gguf: Path, folder: Path, name: str) -> None:
    """Write the model and the tokenizer in a GGUF file into a folder.

    Quantised weights become what their codes stand for, rounded to float16: that error is far
    below that of the codes.

    Args:
        gguf: the file. Its tokenizer is a byte-level BPE that takes digits one by one, which
            transformers doesn't read out of it.
        folder: exists and is empty.
        name: what the model is publicly called; adapters name it as their base.

    Raises:
        BaseModelError: the installed transformers and gguf can't read such a file.
        OSError: the folder can't be written.
    """
    tokenizer, model = _read(gguf)
    _not_quantised(model).save_pretrained(folder)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    for kind in ("bos", "eos", "unk", "pad"):  # some releases leave some of them out
        token = getattr(model.config, f"{kind}_token_id", None)
        if token is not None:
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(token))
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(folder)
    _tidy(folder / "config.json", name)


def _read(gguf: Path) -> tuple[Tokenizer, PreTrainedModel]:
    where, file = gguf.parent, gguf.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=file, dtype=torch.float16, **_as_plain_numbers()
        )
    except (ImportError, LookupError, OSError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"transformers {transformers.__version__} can't read {file}: {error}. Install the "
            'versions that the lab asks for: pip install "vblora-lab[smollm2]"'
        ) from error
    return tokenizer, model


def _as_plain_numbers() -> dict[str, Any]:
    """What newer transformers must be told, which can also leave weights in their codes."""
    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def _not_quantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that transformers does not take for a quantised one."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _tidy(path: Path, name: str) -> None:
    """Have a config.json say what the model is called, and nothing of where it came from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("quantization_config", "_model_name_or_path"):
        config.pop(key, None)
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # GGUF has it as float32
    config["_name_or_path"] = name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
