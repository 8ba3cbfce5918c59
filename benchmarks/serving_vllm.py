"""Rows of a batch with an adapter each: here, by PEFT's LoRA, and by vLLM's LoRA, on this CPU.

    make .venv/serving/.ready     # vLLM has an environment of its own
    python benchmarks/serving_vllm.py --python .venv/serving/bin/python

Users have random adapters on one bank, of OPT-125m's shape with random weights in float32, q_proj
and v_proj, r = 4. vLLM serves what `AdapterStore.export` makes of them. Each engine gets the same
prompts; prefill is what a call for one token takes, and a token what each further one does. What is
written is compared too. Engines run one after the other, in processes of their own, each on all
cores of the machine. Writes results/serving-vllm.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from serving import generation, measured, names_of
from speed_rows import Row, base_model, lora, ours

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))
from serve_check import surroundings, with_random_logits  # noqa: E402

import vblora_lab as lab  # noqa: E402
from vblora_lab.bases import share_weights  # noqa: E402
from vblora_lab.serving.live import LiveAdapters  # noqa: E402
from vblora_lab.serving.store import AdapterStore  # noqa: E402

ENGINE = HERE / "serving_vllm_engine.py"
RESULTS = HERE / "results" / "serving-vllm.json"


def make_store(folder: Path, row: Row, users: int) -> tuple[torch.nn.Module, AdapterStore]:
    """The base, which is written to a folder too, and so many users with random choices."""
    base = base_model(row.model).eval()
    base.save_pretrained(folder / "base")
    config = lab.VBLoRAConfig(
        **row.fields(), save_only_topk_weights=True, init_vector_bank_bound=0.3
    )
    model = lab.get_peft_model(share_weights(base), config, "first")
    store = AdapterStore(folder / "store")
    for name in names_of(users):
        lab.add_adapter(model, name, config, bank_of="first")
        with_random_logits(model, name)
        store.add(model, name, adapter_name=name)
        model.set_adapter("first")
        model.delete_adapter(name)
    return base, store


def here(base: torch.nn.Module, store: AdapterStore, row: Row, args: Any) -> dict[str, Any]:
    """Milliseconds of each way to serve one row a user, and the tokens of the live adapters."""
    prompt, names = prompts(args), names_of(args.users)
    model = ours(share_weights(base), row).eval()
    live = LiveAdapters(model, store.stored, capacity=2**32)
    many = lora(share_weights(base), row)
    for name in names:
        many.add_adapter(name, peft.LoraConfig(r=row.r, **row.where()))
    ways = {
        "vblora_lab, one adapter": partial(
            generation, model, prompt, adapter_names=names[:1] * len(names)
        ),
        "vblora_lab, one for each": partial(generation, model, prompt, adapter_names=names),
        "PEFT LoRA, one for each": partial(generation, many.eval(), prompt, adapter_names=names),
    }
    times = measured(ways, args.rounds, args.tokens)
    written = generation(model, prompt, args.tokens, adapter_names=names)
    live.close()
    return {"ms": times, "tokens": written[:, args.length :].tolist()}


def prompts(args: argparse.Namespace) -> torch.Tensor:
    """(users, length) int64, in all engines the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, 1000, (args.users, args.length), generator=generator)


def by_vllm(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The same of vLLM, in its own environment."""
    asked = {
        "base": str(folder / "base"),
        "loras": [str(folder / "lora" / name) for name in names_of(args.users)],
        "prompts": prompts(args).tolist(),
        "tokens": args.tokens,
        "rounds": args.rounds,
        "rank": 8,  # vLLM has no smaller one
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    subprocess.run(
        [args.python, ENGINE, folder / "asked.json", folder / "found.json"],
        env=surroundings(), cwd=folder, check=True,
    )  # fmt: skip
    return json.loads((folder / "found.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", type=Path, required=True, help="of vLLM's environment")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--length", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a decode")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.python = args.python.absolute()  # a link: its place tells Python which environment it is
    row = Row("opt-125m", 1, args.length, "qv")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, store = make_store(folder, row, args.users)
        store.export(folder / "lora", names_of(args.users))
        ours_found = here(base, store, row, args)
        vllm_found = by_vllm(folder, args)
    pairs = [
        (one, other)
        for mine, theirs in zip(ours_found["tokens"], vllm_found["tokens"], strict=True)
        for one, other in zip(mine, theirs, strict=True)
    ]
    found = {
        "users": args.users, "length": args.length, "rounds": args.rounds,
        "ms": ours_found["ms"] | vllm_found["ms"],
        "tokens that are the same": sum(one == other for one, other in pairs) / len(pairs),
        "threads": torch.get_num_threads(), "machine": platform.machine(),
        "load": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "peft": peft.__version__} | vllm_found["versions"],
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
