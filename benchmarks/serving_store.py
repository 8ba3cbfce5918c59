"""A store of 10,000 adapters against as many folders of LoRA: bytes, and time to add and to fetch.

    python benchmarks/serving_store.py --work /tmp/stores     # writes results/serving-store.json

Adapters are of the shape that OPT-125m has with r = 4 on q_proj and v_proj: VB-LoRA on one shared
bank of 256 x 256, top 2; LoRA in float32 and float16, as PEFT stores it. Their numbers are random;
no model is needed. `--lora` folders of LoRA are made, fewer since all are of one size.

`add` is what it takes to have an adapter in its place and on the disk, `fetch` to have its config
and tensors in memory, from files that the system has in its cache, in random order; `mixed` has the
matrices A and B too. Digests are checked for VB-LoRA, by `AdapterStore.read`. The folder of a LoRA
is opened as PEFT does. Sizes are those of files, and what they take on the disk (`du`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

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

RESULTS = Path(__file__).parent / "results" / "serving-store.json"
WEIGHTS = "adapter_model.safetensors"
FEATURES, R, BANK, TOPK = 768, 4, (256, 256), 2
MODULES = [
    f"model.decoder.layers.{layer}.self_attn.{name}"
    for layer in range(12)
    for name in ("q_proj", "v_proj")
]
FETCHES = 2000
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


def timed(call: Callable[[str], object], names: list[str]) -> dict[str, float]:
    """Milliseconds of a call with each name: median and 99th percentile."""
    times = []
    for name in names:
        begun = time.perf_counter()
        call(name)
        times.append(1000 * (time.perf_counter() - begun))
    return {"median": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}


def in_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies: mapped files are read when their numbers are looked at."""
    return {key: tensor.clone() for key, tensor in tensors.items()}


def of_store(work: Path, count: int, names: list[int]) -> dict[str, object]:
    torch.manual_seed(0)
    bank = torch.rand(BANK) - 0.5
    sources = {path.name: path for path in make_sources(work / "sources", count, bank)}
    store = AdapterStore(work / "store")
    added = timed(lambda name: store.add(sources[name], name, bank=bank), list(sources))
    store.close()
    begun = time.perf_counter()
    again = AdapterStore(work / "store", create=False)
    found = len(again)
    opened = 1000 * (time.perf_counter() - begun)
    assert found == count

    def fetch(name: str) -> dict[str, Tensor]:
        return in_memory({k: t for k, t in again.read(name).tensors.items() if t.shape != BANK})

    def mix(name: str) -> dict[str, tuple[Tensor, Tensor]]:
        read = again.read(name)
        return vblora_factors(read.tensors, read.config)

    wanted = [f"user-{number:05}" for number in names]
    for name in wanted:
        fetch(name)  # into the system's cache
    return {
        "open_ms": opened,
        "add_ms": added,
        "find_ms": timed(lambda name: again[name], wanted),
        "fetch_ms": timed(fetch, wanted),
        "mixed_ms": timed(mix, wanted[: len(wanted) // 4]),
        **sizes(work / "store", count, count),
        "weights_of_one": (sources[wanted[0]] / WEIGHTS).stat().st_size,
        "bank": bank.nbytes,
    }


def of_lora(
    work: Path, count: int, made: int, dtype: torch.dtype, names: list[int]
) -> dict[str, object]:
    torch.manual_seed(0)
    config = LoraConfig(r=R, lora_alpha=R, **SHARED)
    folder = work / str(dtype)

    def add(name: str) -> None:
        write_adapter(folder / name, config, tensors)

    tensors = lora_tensors(dtype)
    added = timed(add, [f"user-{number:05}" for number in range(made)])

    def fetch(name: str) -> dict[str, Tensor]:
        PeftConfig.from_pretrained(str(folder / name))
        return in_memory(load_file(folder / name / WEIGHTS))

    wanted = [f"user-{number % made:05}" for number in names]
    for name in wanted:
        fetch(name)
    return {
        "add_ms": added,
        "fetch_ms": timed(fetch, wanted),
        **sizes(folder, count, made),
        "weights_of_one": (folder / "user-00000" / WEIGHTS).stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--lora", type=int, default=1000, help="folders of LoRA that are made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = random.Random(0).choices(range(args.adapters), k=min(FETCHES, args.adapters))
    found: dict[str, object] = {"adapters": args.adapters, "lora_folders": args.lora}
    found["vblora"] = of_store(args.work, args.adapters, names)
    for dtype in (torch.float32, torch.float16):
        name = f"lora_{str(dtype).removeprefix('torch.')}"
        found[name] = of_lora(args.work, args.adapters, args.lora, dtype, names)
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
    print(json.dumps(found, indent=1))
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
