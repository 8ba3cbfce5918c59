"""Record what `plan` says about some models: `python tools/record_plans.py`, some minutes.

The page `play/explorer.html` of the site shows it (docs/play/plans.json), without Python. A test
asks `plan` again about some configs; where it says something else now, record anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel

from vblora_lab import VBLoRAConfig
from vblora_lab.bases import load_skeleton, skeleton_of
from vblora_lab.widgets.config_explorer.recording import packed, record

PLANS = Path(__file__).resolve().parents[1] / "docs" / "play" / "plans.json"


def llama_3_8b() -> PreTrainedModel:
    """The shape of Llama 3 8B: arXiv 2407.21783, table 3."""
    return skeleton_of(
        LlamaConfig(
            vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        ),
        dtype=torch.bfloat16,
    )  # fmt: skip


# By name: the model without weights, and the bank (vectors, length) that its page begins with.
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], tuple[int, int]]] = {
    "OPT-125m": (lambda: load_skeleton("opt-125m-random"), (256, 256)),
    "mini-OPT": (lambda: load_skeleton("mini-opt"), (64, 64)),
    "SmolLM2-135M": (lambda: load_skeleton("smollm2-135m"), (256, 192)),
    "Llama 3 8B": (llama_3_8b, (2048, 256)),
}


def config_of(bank: tuple[int, int]) -> VBLoRAConfig:
    """Where the page of a model begins: as in README, with this bank."""
    return VBLoRAConfig(
        r=4, num_vectors=bank[0], vector_length=bank[1], target_modules=["q_proj", "v_proj"],
        save_only_topk_weights=True, task_type="CAUSAL_LM",
    )  # fmt: skip


def recorded(name: str) -> str:
    """What the page has of a model."""
    make, bank = MODELS[name]
    return packed(record(make(), config_of(bank)))


def main() -> None:
    with ProcessPoolExecutor(len(MODELS)) as workers:
        recordings = dict(zip(MODELS, workers.map(recorded, MODELS), strict=True))
    PLANS.write_text(json.dumps(recordings, indent=1) + "\n", encoding="utf-8")
    print(f"{PLANS.name}: {PLANS.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
