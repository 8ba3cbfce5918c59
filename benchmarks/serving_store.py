"""A store of 10,000 adapters against as many folders of LoRA: bytes, and time to add and to fetch.

    python benchmarks/serving_store.py --work /tmp/stores

writes results/serving-store.json, and the table of it in docs/serving.md.

Adapters are of the shape that OPT-125m has with r = 4 on q_proj and v_proj: VB-LoRA on one shared
bank of 256 x 256, top 2; LoRA in float32 and float16, as PEFT stores it. Their numbers are random;
no model is needed. `--lora` folders of LoRA are made, fewer since all are of one size.

`add` is what it takes to have one more adapter in its place and on the disk, in a store of so many,
in an empty one, and as a folder of LoRA, in turn. `fetch` is what it takes to have config and
tensors in memory, from files that the system has in its cache, in random order and in turn; `find`
to look up a name, `mixed` to have the matrices A and B too. The store checks an adapter when it is
added, and its digest when it is read; the folder of a LoRA is opened as PEFT does, unchecked. Sizes
are those of files, and what they take on the disk (`du`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import safetensors
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from vblora_lab.convert.adapters import LORA_A, LORA_B, vblora_factors
from vblora_lab.convert.places import write_adapter
from vblora_lab.serving.store import AdapterStore
from vblora_lab.tuner import formats
from vblora_lab.tuner.banks import fingerprint, write_fingerprint
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.sizes import lora_stored_bytes, vblora_stored_bytes

RESULTS = Path(__file__).parent / "results" / "serving-store.json"
DOCS = Path(__file__).parents[1] / "docs" / "serving.md"
BEGIN, END = "<!-- by benchmarks/serving_store.py: -->\n", "<!-- until here -->\n"
WEIGHTS = "adapter_model.safetensors"
FEATURES, R, BANK, TOPK = 768, 4, (256, 256), 2
MODULES = [
    f"model.decoder.layers.{layer}.self_attn.{name}"
    for layer in range(12)
    for name in ("q_proj", "v_proj")
]
FETCHES = 2000
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHARED = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "inference_mode": True}


def vblora_tensors() -> dict[str, Tensor]:
    """Random choices of two bank vectors, in the top-k format."""
    config = VBLoRAConfig(
        r=R, num_vectors=BANK[0], vector_length=BANK[1], topk=TOPK, save_only_topk_weights=True
    )
    features = {name: (FEATURES, FEATURES) for name in MODULES}
    shapes = formats.expected_shapes(config, features, only_topk=True, with_bank=False)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith(formats.INDICES):
            first = torch.randint(BANK[0], (*shape[:-1], 1))
            second = (first + torch.randint(1, BANK[0], first.shape)) % BANK[0]
            tensors[key] = torch.cat([first, second], -1).to(formats.index_dtype(BANK[0]))
        else:
            tensors[key] = 0.5 + 0.5 * torch.rand(shape)
    return tensors


def make_sources(folder: Path, count: int, bank: Tensor) -> list[Path]:
    """Folders of adapters, as PEFT and this package store them without their bank."""
    config = VBLoRAConfig(
        r=R, num_vectors=BANK[0], vector_length=BANK[1], topk=TOPK, save_only_topk_weights=True,
        **SHARED,
    )  # fmt: skip
    sources = []
    for number in range(count):
        source = folder / f"user-{number:05}"
        source.mkdir(parents=True)
        save_file(vblora_tensors(), source / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(source)
        write_fingerprint(source, fingerprint(bank))
        sources.append(source)
    return sources


def lora_tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = {}
    for name in MODULES:
        tensors[f"{formats.LAYER_PREFIX}{name}{LORA_A}"] = torch.randn(R, FEATURES).to(dtype)
        tensors[f"{formats.LAYER_PREFIX}{name}{LORA_B}"] = torch.randn(FEATURES, R).to(dtype)
    return tensors


def sizes(folder: Path, count: int, of: int) -> dict[str, int]:
    """Bytes of the files in a folder, and what the disk has for them; for so many of so many."""
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    done = subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, check=True)
    return {
        "files": round(files * count / of),
        "disk": round(int(done.stdout.split()[0]) * count / of),
    }


def took(call: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)


def in_turn(
    calls: dict[str, Callable[[str], object]], names: list[str]
) -> dict[str, dict[str, float]]:
    """Milliseconds of calls that take turns, name by name: median and 99th percentile."""
    times: dict[str, list[float]] = {call: [] for call in calls}
    for name in names:
        for call, act in calls.items():
            times[call].append(took(partial(act, name)))
    return {call: summary(each) for call, each in times.items()}


def summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}


def in_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies: mapped files are read when their numbers are looked at."""
    return {key: tensor.clone() for key, tensor in tensors.items()}


class Loras:
    """Folders of LoRA, written by this package, read as PEFT reads them."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self._config = LoraConfig(r=R, lora_alpha=R, **SHARED)
        self._tensors = lora_tensors(dtype)

    def add(self, name: str) -> None:
        write_adapter(self.folder / name, self._config, self._tensors)

    def fetch(self, name: str) -> dict[str, Tensor]:
        PeftConfig.from_pretrained(str(self.folder / name))
        return in_memory(load_file(self.folder / name / WEIGHTS))


class Stored:
    """A store that is filled from folders, and one that is empty."""

    def __init__(self, work: Path, count: int, more: int) -> None:
        self.bank = torch.rand(BANK) - 0.5
        self._sources = make_sources(work / "sources", count + more, self.bank)
        self.folder = work / "store"
        self.store, self.empty = AdapterStore(self.folder), AdapterStore(work / "empty")
        with patch("os.fsync", lambda handle: None):  # so that filling it takes minutes only
            for number in range(count):
                self.add(f"{number:05}")

    def add(self, name: str) -> None:
        self.store.add(self._sources[int(name)], name, bank=self.bank)

    def add_to_empty(self, name: str) -> None:
        self.empty.add(self._sources[int(name)], name, bank=self.bank)

    def fetch(self, name: str) -> dict[str, Tensor]:
        tensors = self.store.read(name).tensors
        return in_memory({key: t for key, t in tensors.items() if key != formats.BANK_KEY})

    def mix(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        read = self.store.read(name)
        return vblora_factors(read.tensors, read.config)

    def open_again(self) -> None:
        self.store = AdapterStore(self.folder, create=False)
        assert self.store["00000"]


def measure(work: Path, count: int, made: int) -> dict[str, object]:
    torch.manual_seed(0)
    stored = Stored(work, count, made)
    loras = {f"lora_{kind}": Loras(work / kind, DTYPES[kind]) for kind in DTYPES}
    of_store = sizes(stored.folder, count, count)
    stored.store.close()
    opened = took(stored.open_again)
    new = [f"{number:05}" for number in range(count, count + made)]
    adds = {kind: each.add for kind, each in loras.items()}
    added = in_turn({"vblora": stored.add, "empty": stored.add_to_empty, **adds}, new)
    wanted = random.Random(0).choices(new, k=FETCHES)
    fetches = {"vblora": stored.fetch, **{kind: each.fetch for kind, each in loras.items()}}
    in_turn(fetches, new)  # into the system's cache
    fetched = in_turn(fetches, wanted)
    found: dict[str, dict] = {
        kind: {"add_ms": added[kind], "fetch_ms": fetched[kind]} for kind in fetches
    }
    found["vblora"] |= {
        "add_to_empty_store_ms": added["empty"],
        "open_ms": opened,
        "find_ms": in_turn({"": lambda name: stored.store[name]}, wanted)[""],
        "mixed_ms": in_turn({"": stored.mix}, wanted[: FETCHES // 4])[""],
        **of_store,
    }
    for kind, each in loras.items():
        found[kind] |= sizes(each.folder, count, made)
    return found


def on_paper(users: int = 10**6) -> dict[str, object]:
    """Bytes of so many users of a 70B model: tensors of q and v in 80 blocks, of 8,192 and 1,024.

    That is the shape of Llama-3-70B. r, bank and top k are those above.
    """
    features = [(8192, 8192), (8192, 1024)] * 80
    config = VBLoRAConfig(
        r=R, num_vectors=BANK[0], vector_length=BANK[1], topk=TOPK, save_only_topk_weights=True
    )
    return {
        "users": users,
        "vblora": users * vblora_stored_bytes(config, features, with_bank=False),
        "vblora_with_own_banks": users * vblora_stored_bytes(config, features),
        "lora_float16": users * lora_stored_bytes(features, R) // 2,
    }


def report(found: dict[str, Any]) -> str:
    """What docs/serving.md shows of the record: the machine, and a table."""
    machine, kinds = (
        found["machine"],
        [found["vblora"], found["lora_float32"], found["lora_float16"]],
    )

    def row(what: str, key: str, cell: Callable[[Any], str]) -> str:
        return (
            "| "
            + " | ".join([what, *(cell(each[key]) if key in each else "" for each in kinds)])
            + " |"
        )

    lines = [
        f"{machine['cores']} cores with a load of {machine['load']:.1f} at the end, Python "
        f"{machine['python']}, PyTorch {machine['torch']}, SQLite {machine['sqlite']}:",
        "",
        "| | store | folders of LoRA, float32 | float16 |",
        "|---|---:|---:|---:|",
        row("bytes of the files", "files", mebibytes),
        row("on the disk", "disk", mebibytes),
        row("open", "open_ms", "{:.1f} ms".format),
        row("find a name", "find_ms", milliseconds),
        row("fetch one: config and tensors", "fetch_ms", milliseconds),
        row("fetch one and mix A and B", "mixed_ms", milliseconds),
        row("add one", "add_ms", milliseconds),
        row("add one to an empty store", "add_to_empty_store_ms", milliseconds),
    ]
    return "\n".join(lines) + "\n"


def mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def milliseconds(times: dict[str, float]) -> str:
    """Median and 99th percentile, with two digits that count."""
    median, p99 = (
        f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}" for value in times.values()
    )
    return f"{median} ms (p99 {p99})"


def put_into_docs(found: dict[str, Any]) -> None:
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    DOCS.write_text(before + BEGIN + report(found) + END + rest.partition(END)[2], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--lora", type=int, default=500, help="folders of LoRA that are made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {"adapters": args.adapters, "lora_folders": args.lora}
    found |= measure(args.work, args.adapters, args.lora)
    found["on_paper"] = on_paper()
    found["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "safetensors": safetensors.__version__,
        "sqlite": sqlite3.sqlite_version,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    put_into_docs(found)
    print(json.dumps(found, indent=1))
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
