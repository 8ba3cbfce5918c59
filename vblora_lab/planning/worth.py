"""Whether an adapter is stored in fewer bytes than LoRA of its rank, and what would make it so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from vblora_lab.planning.rows import against_lora
from vblora_lab.tables import readable
from vblora_lab.tuner import sizes
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.problems import Problem
from vblora_lab.tuner.targets import match_targets
from vblora_lab.tuner.wrapped import in_out_features

Features = Sequence[tuple[int, int]]


def dearer_than_lora(
    config: VBLoRAConfig, features: Features, float_bytes: int = sizes.FLOAT32_BYTES
) -> list[Problem]:
    """A caution if the stored adapter is larger than LoRA of rank r on these layers; else none.

    Args:
        config: of the adapter.
        features: (in_features, out_features) of each adapted layer; vector_length divides them.
        float_bytes: of a number of the adapter.
    """

    def stored(config: VBLoRAConfig, only_topk: bool | None = None) -> int:
        return sizes.vblora_stored_bytes(
            config, features, only_topk=only_topk, float_bytes=float_bytes
        )

    lora = sizes.lora_stored_bytes(features, config.r)
    ours, small = stored(config), stored(config, only_topk=True)
    if ours <= lora:
        return []
    said = f"Stored, this is {against_lora(ours, lora)} of rank {config.r} on the same modules: "
    if not config.save_only_topk_weights:
        said += (
            "all logits are kept, so that training can go on from the file. For use alone, top-k "
            f"storage takes {readable(small)}, {against_lora(small, lora)}."
        )
        return [Problem("save_only_topk_weights", said, True)]
    count = sizes.count_sub_vectors(config, features)
    bank = readable(sizes.bank_bytes(config, float_bytes))
    said += f"the bank alone takes {bank}, for no more than {count:,} sub-vectors."
    for vectors in (2**power for power in range(14, 0, -1)):
        fewer = config.topk <= vectors < config.num_vectors
        if fewer and stored(dataclasses.replace(config, num_vectors=vectors)) <= lora / 2:
            return [Problem("num_vectors", f"{said} With {vectors}, it is half of LoRA.", vectors)]
    return [Problem("num_vectors", said)]


def config_that_pays(model: nn.Module, config: VBLoRAConfig) -> VBLoRAConfig:
    """The config, changed as far as is needed to fit the model and to be stored in less than LoRA.

    Args:
        model: the base model; its parameters may be on the meta device. Never changed.
        config: where to start; never changed.
    """
    for _ in range(4):  # length, storage and bank: each is settled once at most
        found = match_targets(model, config)
        features = [in_out_features(layer) for layer in found.targets.values()]
        wrong = [*found.problems] or dearer_than_lora(config, features)
        if not wrong or wrong[0].suggestion is None:
            break
        config = dataclasses.replace(config, **{wrong[0].field: wrong[0].suggestion})
    return config
