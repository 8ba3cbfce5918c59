"""Stored adapters of one small base: some that share a bank, and one with a bank of its own."""

from __future__ import annotations

import pytest
import torch

import vblora_lab.tuner.peft as lab
from tests.cases import CASES
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.config import VBLoRAConfig

USERS = [f"user-{i}" for i in range(4)]


def with_random_logits(model, adapter: str) -> None:
    for layer in adapted_layers(model, adapter).values():
        for logits in layer.logits(adapter):
            logits.data = torch.randn_like(logits)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """A folder: first/ has the bank that user-0/ to user-3/ need, own/ has another."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(1)
    case = CASES["opt"]
    config = VBLoRAConfig(**case.config, save_only_topk_weights=True)
    model = lab.get_peft_model(case.base(), config, "first")
    model.base_model.vblora_vector_bank["first"].data.normal_()
    for name in USERS:
        lab.add_adapter(model, name, config, bank_of="first")
    model.add_adapter("own", VBLoRAConfig(**case.config))
    for name in ("first", *USERS, "own"):
        with_random_logits(model, name)
    with lab.using():
        model.save_pretrained(folder)
    lab.save_with_bank(model, folder, "first")
    return folder
