"""Many adapters on one bank: some users train it together, then each trains logits of their own.

    train_adapter(model, base.tokenizer, examples_of_some_users, steps=100)
    add_user(model, "ada", of="default")  # the bank is frozen from here on
    train_adapter(model, base.tokenizer, examples_of_ada, steps=30)

A session of its own for each user would be more than is needed: here is the plain loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase as Tokenizer

from vblora_lab.data import Example
from vblora_lab.errors import ConfigError, did_you_mean
from vblora_lab.train.batches import arrange
from vblora_lab.train.completion import completion_logits
from vblora_lab.train.optimizer import SHORT_RUN_RATES, LearningRates, make_optimizer
from vblora_lab.train.prompts import Collator, encode_all, positions_of
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.peft import add_adapter
from vblora_lab.tuner.starts import copy_adapter


def train_adapter(
    model: PeftModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    steps: int,
    *,
    batch_size: int = 16,
    rates: LearningRates = SHORT_RUN_RATES,
    seed: int = 0,
) -> list[float]:
    """Train what the active adapter has to train, with rates that fall to 0 in a line.

    Args:
        model: its active adapter is trained, on the model's device; it is left in eval mode.
        tokenizer: of the base model.
        examples: to train on, in an order that the seed says.
        steps: how many, each of `batch_size` texts.
        batch_size: texts in a step.
        rates: learning rates at the start.
        seed: of the order.

    Returns:
        The loss of each step, in nats per token.

    Raises:
        ConfigError: there is no example, or steps or batch_size is no positive number.
    """
    for name, value in {
        "steps": steps,
        "batch_size": batch_size,
        "examples": len(examples),
    }.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} is too few; at least 1 is needed.")
    rows = arrange(encode_all(tokenizer, examples, positions_of(model)), batch_size, steps, seed)
    collate = Collator(tokenizer.pad_token_id)
    optimizer = make_optimizer(model, rates)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    model.train()
    try:
        with completion_logits(model):
            for start in range(0, len(rows), batch_size):
                batch = collate(rows[start : start + batch_size])
                loss = model(**{key: each.to(model.device) for key, each in batch.items()}).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                losses.append(loss.detach())
    finally:
        model.eval()
    return torch.stack(losses).tolist()


def add_user(model: PeftModel, name: str, *, of: str = "default", own_bank: bool = False) -> None:
    """Add an adapter for a user, which begins as a copy of another, and make it the active one.

    Args:
        model: with the adapter `of`.
        name: of the new adapter.
        of: whose logits it begins with, and whose bank it uses, frozen.
        own_bank: whether it trains a copy of that bank as its own instead.

    Raises:
        ConfigError: there is no adapter `of`; or the name is taken, or can't be one.
    """
    if of not in model.peft_config:
        hint = did_you_mean(of, model.peft_config)
        raise ConfigError(f"of={of!r}: the model has no adapter of that name.{hint}")
    config = replace(model.peft_config[of], inference_mode=False)
    add_adapter(model, name, config, bank_of=of, freeze_bank=not own_bank)
    layers = adapted_layers(model, name)
    copy_adapter(layers, next(iter(layers.values())).vblora_vector_bank, of, name)
    model.set_adapter(name)
