"""The E2E experiment of the VB-LoRA paper (arXiv 2405.15179) with a small model.

    python examples/e2e_opt125m.py                         # OPT-125m and the data from the hub
    python examples/e2e_opt125m.py --model gpt2            # or gpt2-medium, gpt2-large
    python examples/e2e_opt125m.py --train trainset.csv --test testset_w_refs.csv
    python examples/e2e_opt125m.py --offline --steps 100   # mini-OPT and a generated task

The paper's settings: AdamW, learning rates 1e-3 for the bank and 1e-2 for the logits, linear decay
after a warm-up of 6% of the steps, vectors of length 256, the top 2 of them, rank 4, query and
value (in GPT-2, c_attn holds both). It prints the paper's columns, each computed by a maintained
library (pip install 'vblora-lab[e2e]').

Expect the shape of the paper's result, not its digits: the paper trains GPT-2 medium and large
and decodes with beam search; here the model is smaller and the decoding greedy. Five epochs of E2E
with OPT-125m need a GPU; `--steps` makes the run shorter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vblora_lab import LearningRates, Task, TrainingSession, VBLoRAConfig, load_base, load_task
from vblora_lab.data import read_csv, slot_error_rate
from vblora_lab.data.e2e import task_of
from vblora_lab.data.e2e_scores import COLUMNS, e2e_scores
from vblora_lab.errors import VBLoRAError
from vblora_lab.train import ProgressBar, write_texts


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        summary = experiment(args)
    except VBLoRAError as error:
        print(f"e2e_opt125m: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"e2e_opt125m: stopped; --resume goes on from {args.out}", file=sys.stderr)
        return 130
    print(report(summary))
    return 0


def experiment(args: argparse.Namespace) -> dict[str, object]:
    """Train, write a text for each test MR, score; leaves everything in args.out."""
    base = load_base("mini-opt" if args.offline else args.model)
    task = load_data(args)
    pairs = sum(len(example.references) for example in task.train)
    steps = args.steps or max(1, args.epochs * pairs // args.batch_size)
    session = TrainingSession(
        base,
        VBLoRAConfig(
            r=4, num_vectors=args.num_vectors, vector_length=256, topk=2, task_type="CAUSAL_LM"
        ),
        task,
        steps=steps,
        batch_size=args.batch_size,
        learning_rates=LearningRates(bank=1e-3, logits=1e-2),
        seed=args.seed,
        out=args.out,
        resume=args.resume,
        listeners=[ProgressBar()],
    )
    trace = session.run()
    if trace.reason == "stopped":
        raise KeyboardInterrupt  # a session stops cleanly, but half a run is no experiment

    examples = task.test[: args.test_mrs]
    texts = write_texts(session.model, base.tokenizer, [example.mr for example in examples])
    lines = "".join(f"{text}\n" for text in texts)
    (args.out / "texts.txt").write_text(lines, encoding="utf-8")
    facts = [example.facts for example in examples]
    summary = {
        "base": base.label,
        "task": task.name,
        "steps": int(trace.steps[-1]),
        "trained_parameters": trace.trained_parameters,
        "stored_bytes": trace.stored_bytes,
        "lora_stored_bytes": trace.lora_stored_bytes,
        "test_mrs": len(examples),
        "validation_loss": float(trace.eval_losses[-1]),
        "slot_error_rate": slot_error_rate(task.domain, facts, texts),
        "scores": e2e_scores(texts, [example.references for example in examples]),
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


# --- the data


def load_data(args: argparse.Namespace) -> Task:
    if args.offline:
        return load_task("restaurants", seed=args.seed)
    if args.train is None:
        return load_task("e2e")
    if args.test is None:
        return load_task(args.train, seed=args.seed)  # one file, split by MR
    return task_of([read_csv(args.train), [], read_csv(args.test)], args.seed)


# --- the words


def report(summary: dict[str, object]) -> str:
    """The paper's columns, and what is absent and why."""
    scores = summary["scores"]
    assert isinstance(scores, dict)
    cells = [f"{scores[c]:.2f}" if isinstance(scores[c], float) else "–" for c in COLUMNS]
    head = "".join(f"{name:>9}" for name in COLUMNS)
    lines = [
        "",
        f"{summary['base']} on {summary['task']}, {summary['steps']} steps, "
        f"{summary['test_mrs']} test MRs, greedy decoding",
        f"trained parameters {summary['trained_parameters']:,}, "
        f"stored {summary['stored_bytes']:,} bytes (LoRA: {summary['lora_stored_bytes']:,})",
        f"validation loss {summary['validation_loss']:.3f} nats per token, "
        f"slot errors {summary['slot_error_rate']:.1%}",
        "",
        head,
        "".join(f"{cell:>9}" for cell in cells),
    ]
    absent = [f"  {name}: {scores[name]}" for name in COLUMNS if isinstance(scores[name], str)]
    return "\n".join([*lines, *(["", "Absent:", *absent] if absent else [])])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="facebook/opt-125m", help="hub name or folder")
    parser.add_argument("--train", type=Path, help="CSV with the columns mr and ref")
    parser.add_argument("--test", type=Path, help="the same for the test; else split off --train")
    parser.add_argument("--offline", action="store_true", help="mini-OPT and a generated task")
    parser.add_argument("--epochs", type=positive, default=5)
    parser.add_argument("--steps", type=positive, help="instead of --epochs")
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--num-vectors", type=positive, default=256, help="size of the bank")
    parser.add_argument("--test-mrs", type=positive, help="only so many test MRs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("e2e"), help="folder (default: e2e)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    args = parser.parse_args(argv)
    if args.offline and (args.train or args.test):
        parser.error("--offline generates its own task; leave out --train and --test, or --offline")
    if args.test and not args.train:
        parser.error("--test needs --train too")
    return args


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
