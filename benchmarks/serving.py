"""Many users on one base model: a mixed batch against one user's, and what a swap takes.

    python benchmarks/serving.py                                   # small, in a minute on a CPU
    python benchmarks/serving.py --model opt-1.3b --users 1 8 32 64 128 1024 --held 128   # on a GPU

`batch`: each of so many users has one row. Prefill is a call of `generate` for one token, decode
what each further token takes. Against the same batch with one adapter for all, merged and not.
Up to `held` adapters PEFT holds too, in modules: ours, and LoRA of the same rank.
`swap`: to add one adapter, to swap and to drop it, when so many are there.

All methods take turns in one process; times are medians. Models have random weights of the named
shape, bf16 on a GPU. Writes results/serving-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
import transformers
from speed_clock import clean_up, interleaved, milliseconds
from speed_rows import CUDA, DEVICE, OPT_SIZES, Row, base_model, lora, ours
from torch import Tensor, nn

import vblora_lab
from vblora_lab.bases import share_weights
from vblora_lab.serving.live import LiveAdapters
from vblora_lab.tuner import formats
from vblora_lab.tuner.adapted import adapted_layers, features

RESULTS = Path(__file__).parent / "results"
warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")
warnings.filterwarnings("ignore", ".*Already following adapters.*")


def stored(model: nn.Module, row: Row, seed: int) -> tuple[dict[str, Tensor], Any]:
    """An adapter as a store has it, of random choices, on the bank of the model's own."""
    config = vblora_lab.VBLoRAConfig(**row.fields(), save_only_topk_weights=True)
    sizes = features(adapted_layers(model))
    generator = torch.Generator().manual_seed(seed)
    tensors = {formats.BANK_KEY: model.vblora_vector_bank["default"].detach().cpu()}
    for key, shape in formats.expected_shapes(config, sizes, only_topk=True).items():
        if key.endswith(formats.INDICES):
            first = torch.randint(row.num_vectors, shape[:-1], generator=generator)
            # Neighbours in the bank, so that no vector is chosen twice.
            chosen = (first.unsqueeze(-1) + torch.arange(shape[-1])) % row.num_vectors
            tensors[key] = chosen.to(formats.index_dtype(row.num_vectors))
        elif key.endswith(formats.WEIGHTS):
            tensors[key] = torch.rand(shape, generator=generator) / shape[-1]
    return tensors, config


class Users:
    """A source of any number of users, of whom every 64th has the same adapter."""

    def __init__(self, model: nn.Module, row: Row) -> None:
        self.stored = [stored(model, row, seed) for seed in range(64)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith("user-")

    def __getitem__(self, name: str) -> tuple[dict[str, Tensor], Any]:
        return self.stored[int(name.removeprefix("user-")) % len(self.stored)]


def names_of(users: int) -> list[str]:
    return [f"user-{i}" for i in range(users)]


@torch.no_grad()
def generation(model: nn.Module, prompt: Tensor, tokens: int, **options: Any) -> Any:
    return model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=1,
        **options,
    )


def batch(args: argparse.Namespace) -> Iterator[dict]:
    """Prefill and decode of one row for each user."""
    row = Row(args.model, 1, args.length, args.targets)
    base = base_model(args.model).eval()
    merged, one = ours(share_weights(base), row), ours(share_weights(base), row)
    merged.merge_adapter()
    live = LiveAdapters(one.eval(), capacity=2**36)
    live.source = Users(one, row)
    many, many_lora = ours(share_weights(base), row), lora(share_weights(base), row)
    held = max([n for n in args.users if n <= args.held], default=0)
    for name in names_of(held):
        config = vblora_lab.VBLoRAConfig(**row.fields(), inference_mode=True)
        vblora_lab.add_adapter(many, name, config, bank_of="default")
        many_lora.add_adapter(name, peft.LoraConfig(r=row.r, **row.where()))
    for model in (merged.eval(), many.eval(), many_lora.eval()):
        model.requires_grad_(False)
    for users in args.users:
        prompt = torch.randint(4, 1000, (users, args.length), device=DEVICE)
        names = names_of(users)
        methods: dict[str, Callable[[int], object]] = {
            "merged, one for all": partial(generation, merged, prompt),
            "one adapter for all": partial(generation, one, prompt),
            "live, one for each": partial(generation, one, prompt, adapter_names=names),
        }
        slow = {}
        if users <= held:
            methods["in modules, one for each"] = partial(
                generation, many, prompt, adapter_names=names
            )
            slow["PEFT LoRA, one for each"] = partial(
                generation, many_lora, prompt, adapter_names=names
            )
        times = measured(methods, args.rounds, args.tokens) | measured(slow, 1, 3)
        yield {"section": "batch", "model": args.model, "targets": args.targets} | {
            "users": users,
            "length": args.length,
            "ms": times,
            "live against one adapter": {
                phase: round(
                    times["live, one for each"][phase] / times["one adapter for all"][phase], 3
                )
                for phase in ("prefill", "token")
            },
            "bytes of live adapters": live.nbytes,
        }
        clean_up()


def measured(methods: dict[str, Callable], rounds: int, tokens: int) -> dict[str, dict]:
    """Milliseconds of prefill, and of each token after the first."""
    calls = {(name, n): partial(call, n) for name, call in methods.items() for n in (1, 1 + tokens)}
    taken = interleaved(calls, rounds, warm_up=1)  # type: ignore[arg-type]
    return {
        name: {
            "prefill": round(taken[name, 1], 3),
            "token": round((taken[name, 1 + tokens] - taken[name, 1]) / tokens, 3),
        }
        for name in methods
    }


def swap(args: argparse.Namespace) -> Iterator[dict]:
    """To add, swap and drop one adapter, when so many are there already."""
    row = Row(args.model, 1, args.length, args.targets)
    base = base_model(args.model).eval()
    one = ours(share_weights(base), row)
    users = Users(one, row)
    live = LiveAdapters(one, capacity=2**36)
    for there in args.there:
        for name in names_of(there)[len(live) :]:
            live.add(name, *users[name])
        times: dict[str, list[float]] = {"add": [], "swap": [], "drop": []}
        for i in range(args.rounds):
            new, other = users[f"user-{i}"], users[f"user-{i + 1}"]
            times["add"].append(milliseconds(lambda: live.add("new", *new)))  # noqa: B023
            times["swap"].append(
                milliseconds(lambda: live.add("new", *other, replace=True))  # noqa: B023
            )
            times["drop"].append(milliseconds(lambda: live.drop("new")))
        ms = {what: round(median(each), 3) for what, each in times.items()}
        yield {"section": "swap", "model": args.model, "method": "live", "there": there, "ms": ms}
    live.close()
    yield from swaps_in_modules(base, row, args)


def swaps_in_modules(base: nn.Module, row: Row, args: argparse.Namespace) -> Iterator[dict]:
    """The same by PEFT's calls, from a folder: ours, and LoRA on PEFT's own classes."""
    with tempfile.TemporaryDirectory() as scratch:
        for method, make in (("vblora_lab", ours), ("PEFT LoRA", lora)):
            model, folder = make(share_weights(base), row), Path(scratch) / method
            model.save_pretrained(folder)
            times: dict[str, list[float]] = {"load": [], "delete": []}
            loads = max((n for n in args.there if n <= args.held), default=0)
            for number in range(1, loads + 1):
                with vblora_lab.using():
                    load = partial(model.load_adapter, str(folder), f"user-{number}")
                    times["load"].append(milliseconds(load))
            for number in range(loads, 0, -1):
                delete = partial(model.delete_adapter, f"user-{number}")
                times["delete"].append(milliseconds(delete))
            times["delete"].reverse()  # by how many were there
            for there in (n for n in args.there if n <= loads):
                near = slice(max(0, there - 3), there + 2)
                ms = {what: round(median(each[near]), 3) for what, each in times.items()}
                yield {
                    "section": "swap",
                    "model": args.model,
                    "method": method,
                    "there": there,
                    "ms": ms,
                }


SECTIONS = {"batch": batch, "swap": swap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--model", default="mini-opt", choices=["mini-opt", *OPT_SIZES])
    parser.add_argument("--targets", default="qv", choices=["qv", "all"])
    parser.add_argument("--users", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--there", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--held", type=int, default=32, help="adapters that PEFT holds at most")
    parser.add_argument("--length", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a decode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    about = {
        "device": torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
        "date": time.strftime("%Y-%m-%d"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"serving-{'cuda' if CUDA else 'cpu'}.json"
    records = []
    for section in args.sections or SECTIONS:
        for record in SECTIONS[section](args):
            print(json.dumps(record), flush=True)
            records.append(record)
            path.write_text(json.dumps({"about": about, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
