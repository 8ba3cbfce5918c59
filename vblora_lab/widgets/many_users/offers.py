"""The base models that `ManyUsers` offers, from small to large, and what their users would cost."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from transformers import OPTConfig

from vblora_lab.bases import MINI_OPT, load_skeleton, skeleton_of
from vblora_lab.planning.users import Cost, costs_of_users
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig

RANKS = (1, 2, 4, 8, 16, 32, 64)
# Hidden size, layers and heads of OPT's sizes: arXiv 2205.01068, table 1.
OPT = {
    "OPT-125m": (768, 12, 12),
    "OPT-1.3b": (2048, 24, 32),
    "OPT-6.7b": (4096, 32, 32),
    "OPT-13b": (5120, 40, 40),
    "OPT-66b": (9216, 64, 72),
}
SMALL_BANK, LARGE_BANK = (256, 256), (2048, 256)  # vectors, and the length of each
BANKS = {MINI_OPT: (192, 128), "OPT-125m": SMALL_BANK, "OPT-1.3b": SMALL_BANK}


@dataclass(frozen=True)
class Offer:
    """A base model and what its users' adapters in all linear layers cost.

    Attributes:
        model: its name.
        parameters: how many numbers the base model has.
        num_vectors, vector_length: of the bank.
        costs: by rank, of each method.
    """

    model: str
    parameters: int
    num_vectors: int
    vector_length: int
    costs: dict[int, tuple[Cost, ...]]


@functools.cache
def offers() -> tuple[Offer, ...]:
    """The models from small to large. They are planned without weights, in a few seconds."""
    return tuple(_offer(name) for name in (MINI_OPT, *OPT))


def _offer(name: str) -> Offer:
    if name == MINI_OPT:
        model = load_skeleton(MINI_OPT)
    else:
        size, layers, heads = OPT[name]
        model = skeleton_of(
            OPTConfig(
                hidden_size=size, ffn_dim=4 * size, num_hidden_layers=layers,
                num_attention_heads=heads, word_embed_proj_dim=size,
            )
        )  # fmt: skip
    num_vectors, vector_length = BANKS.get(name, LARGE_BANK)
    config = VBLoRAConfig(
        num_vectors=num_vectors, vector_length=vector_length, target_modules=ALL_LINEAR,
        save_only_topk_weights=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    costs = {r: costs_of_users(model, dataclasses.replace(config, r=r)) for r in RANKS}
    parameters = sum(p.numel() for p in model.parameters())
    return Offer(name, parameters, num_vectors, vector_length, costs)
