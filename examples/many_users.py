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
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch

import vblora_lab
from vblora_lab import AdapterStore, LiveAdapters, VBLoRAConfig
from vblora_lab.bases import share_weights
from vblora_lab.data import format_mr
from vblora_lab.data.styles import facts_for, shares, styles
from vblora_lab.tables import as_text
from vblora_lab.train import write_texts
from vblora_lab.train.one_bank import add_user, train_adapter

FOUNDERS = "founders"


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


def experiment(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """Train, store and serve; what was measured."""
    base = vblora_lab.load_base("mini-opt")
    users = styles(args.users, seed)
    facts = facts_for(args.texts + args.held_out, seed)
    train_on, held_out = facts[: args.texts], facts[args.texts :]
    torch.manual_seed(seed)
    model = vblora_lab.get_peft_model(share_weights(base.model), config(), FOUNDERS)
    theirs = [style.example(each) for style in users[: args.founders] for each in train_on]
    train_adapter(model, base.tokenizer, theirs, args.founder_steps, seed=seed)

    store, seconds = AdapterStore(folder), []
    own = dict.fromkeys(f"user-{i} with a bank of its own" for i in range(args.own_banks))
    for number, name in enumerate([*(f"user-{i}" for i in range(len(users))), *own]):
        style = users[number % len(users)]
        started = time.perf_counter()
        add_user(model, name, of=FOUNDERS, own_bank=name in own)
        examples = [style.example(each) for each in train_on]
        train_adapter(model, base.tokenizer, examples, args.steps, seed=seed)
        seconds.append(time.perf_counter() - started)
        store.add(model, name, adapter_name=name)
        model.set_adapter(FOUNDERS)
        model.delete_adapter(name)

    live = LiveAdapters(model, store.stored, capacity=2**28)
    names = [f"user-{i}" for i in range(len(users))]
    served = [*names, *own, "__base__"]
    started = time.perf_counter()
    texts = [
        write_texts(
            model,
            base.tokenizer,
            [format_mr(each)] * len(served),
            adapter_names=served,
            batch_size=len(served),
        )
        for each in held_out
    ]
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
