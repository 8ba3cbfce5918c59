"""Many users on one base model: a bank that some of them trained, and a few kilobytes for each other.

    python examples/many_users.py                       # 12 users on mini-OPT, minutes on a CPU
    python examples/many_users.py --users 100 --seeds 3   # on a GPU

Every user wants the same facts about restaurants said in another way: own names for the fields, an
own greeting and farewell, and a length of their own. The founders' texts train a bank, which is then
frozen; each user trains logits on it, in seconds, and is put into a store. Then all users are served
in one batch, each row with its own adapter, and the texts are compared with every user's style. For
what sharing costs, some users train a bank of their own as well.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel

import vblora_lab
from vblora_lab import LearningRates, VBLoRAConfig
from vblora_lab.bases import Base, share_weights
from vblora_lab.data import Example
from vblora_lab.data.meaning import format_mr
from vblora_lab.serving.live import LiveAdapters
from vblora_lab.serving.store import AdapterStore
from vblora_lab.tables import as_text, readable
from vblora_lab.train import make_optimizer
from vblora_lab.train.batches import arrange
from vblora_lab.train.prompts import Collator, encode_all, positions_of, prompt

# --- what each user wants

GREETINGS = (
    "Hello!", "Dear guest,", "Good news:", "Well,", "In short:", "My friend,", "Look:",
    "Welcome!", "Psst,", "Attention please:",
)  # fmt: skip
FAREWELLS = (
    "See you soon.", "Enjoy!", "That is all.", "Bye for now.", "With love.", "End of note.",
    "Have fun!", "Take care.", "Yours truly.", "Over and out.",
)  # fmt: skip
FIELDS = {
    "food": ("Food", "Kitchen", "They cook", "Menu"),
    "priceRange": ("Price", "Cost", "Bill", "You pay"),
    "customer rating": ("Rating", "Guests say", "Stars", "Score"),
    "area": ("Area", "Where", "Place", "Go to"),
}


class Style(NamedTuple):
    """How a user wants facts to be said."""

    greeting: str
    farewell: str
    names: Mapping[str, str]  # of the fields
    length: int  # how many fields are said

    def said(self, facts: Mapping[str, str]) -> list[str]:
        """The fields that the user wants, by their own names."""
        fields = [f"{own}: {facts[key]}." for key, own in self.names.items() if key in facts]
        return fields[: self.length]

    def text(self, facts: Mapping[str, str]) -> str:
        """The facts as this user wants to read them."""
        return " ".join([self.greeting, f"{facts['name']}.", *self.said(facts), self.farewell])

    def share(self, text: str, facts: Mapping[str, str]) -> float:
        """From 0 to 1: how much of the style a text has. Each mark counts the same."""
        wanted = self.said(facts)
        marks = [text.startswith(self.greeting), text.endswith(self.farewell)]
        marks += [field in text for field in wanted]
        marks.append(text.count(": ") - self.greeting.count(":") == len(wanted))
        return sum(marks) / len(marks)


def styles(count: int, seed: int) -> list[Style]:
    """Of so many users; no two have the same greeting and farewell."""
    rng = random.Random(seed)
    pairs = rng.sample([(g, f) for g in GREETINGS for f in FAREWELLS], count)
    return [
        Style(g, f, {key: rng.choice(FIELDS[key]) for key in FIELDS}, rng.choice((1, 2, 3, 4)))
        for g, f in pairs
    ]


def facts_for(count: int, seed: int) -> list[dict[str, str]]:
    """Different restaurants with all the fields, drawn from the task."""
    rng = random.Random(seed)
    domain = vblora_lab.load_task("restaurants").domain
    found = []
    for _ in range(count):
        facts = {"name": domain.make_name(rng)}
        for key in FIELDS:
            facts[key] = rng.choice(domain.slot(key).values).value
        found.append(facts)
    return found


# --- training


def train(
    model: PeftModel, base: Base, pairs: Sequence[tuple[Style, dict]], steps: int, seed: int
) -> float:
    """Train the active adapter on texts of these styles; returns the last loss."""
    examples = [Example(format_mr(facts), (style.text(facts),)) for style, facts in pairs]
    rows = encode_all(base.tokenizer, examples, positions_of(model))
    collate = Collator(base.tokenizer.pad_token_id)
    optimizer = make_optimizer(model, LearningRates(bank=3e-3, logits=3e-2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    arranged = arrange(rows, BATCH, steps, seed)
    model.train()
    for step in range(steps):
        batch = collate(arranged[step * BATCH : (step + 1) * BATCH])
        loss = model(**{key: tensor.to(model.device) for key, tensor in batch.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    return float(loss.detach())


BATCH = 16
