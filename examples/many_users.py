"""Many users on one base model: some of them train a bank, and each stores a few kilobytes.

    python examples/many_users.py --users 8 --held-out 3   # mini-OPT, some minutes on a CPU
    python examples/many_users.py --users 100 --seeds 3    # on a GPU

Every user wants the same facts about restaurants said in a way of their own: other names for the
fields, another greeting and farewell, more fields or fewer. The first users' texts train a bank,
which is then frozen. Each user trains logits on it, in seconds, and goes into a store. Then all
users are served in one batch, each row with its own adapter, and every text is compared with every
user's style. For what sharing costs, some users train a copy of the bank as well.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR

import vblora_lab
from vblora_lab import SHORT_RUN_RATES, VBLoRAConfig
from vblora_lab.bases import Base, share_weights
from vblora_lab.data import Example
from vblora_lab.data.meaning import format_mr
from vblora_lab.serving.live import LiveAdapters
from vblora_lab.serving.store import AdapterStore
from vblora_lab.tables import as_text
from vblora_lab.train import make_optimizer
from vblora_lab.train.batches import arrange
from vblora_lab.train.prompts import Collator, encode_all, positions_of, prompt
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.starts import copy_adapter

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

BATCH = 16


def config() -> VBLoRAConfig:
    """Of the founders and of every user: a file holds the top 4 of each sub-vector's logits."""
    return VBLoRAConfig(
        r=16,
        num_vectors=192,
        vector_length=128,
        topk=4,
        target_modules="all-linear",
        save_only_topk_weights=True,
        task_type="CAUSAL_LM",
    )


def train(
    model: PeftModel, base: Base, pairs: Sequence[tuple[Style, dict]], steps: int, seed: int
) -> None:
    """Train the active adapter on texts of these styles."""
    examples = [Example(format_mr(facts), (style.text(facts),)) for style, facts in pairs]
    rows = arrange(encode_all(base.tokenizer, examples, positions_of(model)), BATCH, steps, seed)
    collate = Collator(base.tokenizer.pad_token_id)
    optimizer = make_optimizer(model, SHORT_RUN_RATES)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for start in range(0, len(rows), BATCH):
        batch = collate(rows[start : start + BATCH])
        model(**{key: tensor.to(model.device) for key, tensor in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def add_user(model: PeftModel, name: str, *, own_bank: bool) -> None:
    """A new adapter that begins as the founders', on their bank or on a copy of its own."""
    vblora_lab.add_adapter(model, name, config(), bank_of=FOUNDERS, freeze_bank=not own_bank)
    layers, banks = adapted_layers(model, name), model.base_model.vblora_vector_bank
    copy_adapter(layers, banks, FOUNDERS, name)
    model.set_adapter(name)


FOUNDERS = "founders"


# --- serving


@torch.no_grad()
def texts_for(
    model: PeftModel, base: Base, facts: Mapping[str, str], names: Sequence[str]
) -> list[str]:
    """What each of these adapters says of the same facts, in one batch."""
    batch = base.tokenizer([prompt(format_mr(facts))] * len(names), return_tensors="pt")
    start = batch["input_ids"].shape[1]
    tokens = model.generate(
        input_ids=batch["input_ids"].to(model.device),
        attention_mask=batch["attention_mask"].to(model.device),
        adapter_names=list(names),
        max_new_tokens=80,
        do_sample=False,
        pad_token_id=base.tokenizer.pad_token_id,
    )
    return [text.strip() for text in base.tokenizer.batch_decode(tokens[:, start:], True)]


def shares(
    users: Sequence[Style], facts: Sequence[Mapping[str, str]], texts: Sequence[Sequence[str]]
) -> list[list[float]]:
    """By user who was served and user whose style is looked for: the mean share of its marks.

    Args:
        users: all of them.
        facts: what was said.
        texts: for each of the facts, what each user who was served got.
    """
    return [
        [fmean(style.share(text, f) for text, f in zip(got, facts, strict=True)) for style in users]
        for got in zip(*texts, strict=True)
    ]


# --- the experiment


def experiment(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """Train, store and serve; what was measured."""
    base = vblora_lab.load_base("mini-opt")
    users = styles(args.users, seed)
    facts = facts_for(args.texts + args.held_out, seed)
    train_on, held_out = facts[: args.texts], facts[args.texts :]
    torch.manual_seed(seed)
    model = vblora_lab.get_peft_model(share_weights(base.model), config(), FOUNDERS)
    pairs = [(style, each) for style in users[: args.founders] for each in train_on]
    train(model, base, pairs, args.founder_steps, seed)

    store, seconds = AdapterStore(folder), []
    own = dict.fromkeys(f"user-{i} with a bank of its own" for i in range(args.own_banks))
    for number, name in enumerate([*(f"user-{i}" for i in range(len(users))), *own]):
        style = users[number % len(users)]
        started = time.perf_counter()
        add_user(model, name, own_bank=name in own)
        train(model, base, [(style, each) for each in train_on], args.steps, seed)
        seconds.append(time.perf_counter() - started)
        store.add(model, name, adapter_name=name)
        model.set_adapter(FOUNDERS)
        model.delete_adapter(name)

    live = LiveAdapters(model, store.stored, capacity=2**28)
    names = [f"user-{i}" for i in range(len(users))]
    started = time.perf_counter()
    texts = [texts_for(model, base, each, [*names, *own, "__base__"]) for each in held_out]
    serving = time.perf_counter() - started
    found = shares(users, held_out, texts)
    rows = range(len(users))
    for i in range(min(3, len(users))):
        print(f"  user-{i} wants  {users[i].text(held_out[0])}\n         gets   {texts[0][i]}")
    return {
        "own style": fmean(found[i][i] for i in rows),
        "a stranger's style": fmean(found[i][j] for i in rows for j in rows if i != j),
        "own style is the nearest": fmean(
            all(found[i][i] > found[i][j] for j in rows if i != j) for i in rows
        ),
        "base model": fmean(found[-1]),
        "those with own banks": fmean(found[len(users) + i][i] for i in range(len(own))),
        "the same on the shared bank": fmean(found[i][i] for i in range(len(own))),
        "seconds to train a user": fmean(seconds[: len(users)]),
        "seconds for each batch": serving / len(held_out),
        "bytes of a user": fmean(store[name].bytes for name in names),
        "bytes of a bank": config().num_vectors * config().vector_length * 4,
        "bytes in memory": live.nbytes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=12, help="at most 100")
    parser.add_argument("--founders", type=int, default=6, help="the users who train the bank")
    parser.add_argument("--own-banks", type=int, default=3, help="users who train one of their own")
    parser.add_argument("--texts", type=int, default=64, help="texts of each user to train on")
    parser.add_argument("--held-out", type=int, default=8, help="other facts, to be said for all")
    parser.add_argument("--founder-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=60, help="of each user")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    args = parser.parse_args(argv)
    found = []
    for seed in range(args.seeds):
        print(f"seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            found.append(experiment(args, seed, Path(folder) / "store"))
    cells = []
    for name in found[0]:
        values = [each[name] for each in found]
        spread = f"± {stdev(values):.3g}" if len(values) > 1 else ""
        cells.append((name, f"{fmean(values):,.3g}", spread))
    print(as_text(("measured", "mean", "over seeds"), cells))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
