"""Training a Llama-3-8B shape on one GPU and on several: tokens per second, memory, bytes sent.

    python benchmarks/scale.py                                      # one GPU
    torchrun --standalone --nproc-per-node 2 benchmarks/scale.py --engine ddp
    torchrun --standalone --nproc-per-node 2 benchmarks/scale.py --engine fsdp2
    python benchmarks/scale.py --paper                              # 70B on 64 GPUs, reckoned

Weights are random and made on the GPU, in bfloat16; adapters are float32, in all linear layers of
the decoder. Each run measures the base alone (its gradients reach the inputs), PEFT's LoRA, PEFT's
VB-LoRA and this package's one after the other, with gradient checkpointing and AdamW, and adds its
rows to benchmarks/results/scale.json. A step is one batch in each process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig

import vblora_lab
from vblora_lab.tables import readable

RESULTS = Path(__file__).parent / "results" / "scale.json"
SHAPES = {  # of Llama 3, from the models' config.json; tiny is for a look at this script
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256},
}  # fmt: skip
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(shape: str, **more: Any) -> LlamaConfig:
    return LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, **more)


def base_model(shape: str, device: torch.device) -> nn.Module:
    with device:
        model = AutoModelForCausalLM.from_config(llama(shape), dtype=torch.bfloat16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    return model.requires_grad_(False)


def methods(args: argparse.Namespace) -> dict[str, Callable[[nn.Module], nn.Module]]:
    bank = {
        "r": args.r,
        "num_vectors": args.num_vectors,
        "vector_length": args.vector_length,
        "target_modules": PROJECTIONS,
    }
    lora = peft.LoraConfig(r=args.r, target_modules=PROJECTIONS)
    return {
        "frozen": lambda base: base,
        "PEFT LoRA": lambda base: peft.get_peft_model(base, lora),
        "vblora_lab": lambda b: vblora_lab.get_peft_model(b, vblora_lab.VBLoRAConfig(**bank)),
        "PEFT VB-LoRA": lambda base: peft.get_peft_model(base, peft.VBLoRAConfig(**bank)),
    }


def spread(model: nn.Module, engine: str) -> nn.Module:
    """The model as an engine trains it."""
    trained = any(p.requires_grad for p in model.parameters())
    if engine == "ddp":
        return DistributedDataParallel(model) if trained else model
    if engine == "fsdp2":
        how = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}
        base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        for layer in base.model.layers:
            fully_shard(layer, **how)
        fully_shard(model, **how)
    return model


def steps_of(model: nn.Module, args: argparse.Namespace, device: torch.device) -> Iterator[float]:
    """Seconds of each step."""
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    vocabulary = SHAPES[args.shape]["vocab_size"]
    tokens = torch.randint(vocabulary, (args.batch, args.length), device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    half = nullcontext() if args.engine == "fsdp2" else torch.autocast(device.type, torch.bfloat16)
    for _ in range(args.warm_up + args.steps):
        wait(device)
        start = time.perf_counter()
        with half:
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        wait(device)
        yield time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if dist.is_initialized():
        dist.barrier()


def measure(
    adapt: Callable[[nn.Module], nn.Module], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """What one method takes on this engine."""
    gc.collect()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
    torch.manual_seed(0)  # the same model and adapter in every process
    model = adapt(base_model(args.shape, device)).train()
    numbers = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    model = spread(model, args.engine)
    gc.collect()
    if cuda:  # of training: FSDP has cut the model by now
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = list(steps_of(model, args, device))[args.warm_up :]
    processes = dist.get_world_size() if dist.is_initialized() else 1
    second = statistics.median(seconds)
    return {
        "seconds_per_step": second,
        "tokens_per_second": processes * args.batch * args.length / second,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "trained": sum(numbers.values()),
        "gradient_bytes": 4 * sum(numbers.values()),
        "bank_bytes": 4 * sum(n for name, n in numbers.items() if "vector_bank" in name),
    }


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All methods on one engine, by name; one that fails has its error instead of numbers."""
    device = own_device()
    found: dict[str, Any] = {}
    for name, adapt in methods(args).items():
        if args.methods and name not in args.methods:
            continue
        try:
            found[name] = measure(adapt, args, device)
        except Exception as error:  # of an engine that can't run a method: that is a result
            found[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        if is_first():
            print(line(name, found[name]), flush=True)
    return found


def own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def line(name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{name:13} {row['error']}"
    memory = "-" if row["peak_bytes"] is None else readable(row["peak_bytes"])
    return (
        f"{name:13} {1e3 * row['seconds_per_step']:8.1f} ms/step {row['tokens_per_second']:9.0f} "
        f"tokens/s, peak {memory} a GPU, gradients {readable(row['gradient_bytes'])}, "
        f"bank {readable(row['bank_bytes'])}"
    )


def keep(found: dict[str, Any], args: argparse.Namespace) -> None:
    """Add rows to the file of results, with what they were measured on."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    cuda = torch.cuda.is_available()
    key = f"{args.shape} {args.engine} x{processes}, {args.batch}x{args.length} a process"
    entry = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        "config": {"r": args.r, "num_vectors": args.num_vectors,
                   "vector_length": args.vector_length, "steps": args.steps},
        "rows": found,
    }  # fmt: skip
    stored = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.write_text(json.dumps({**stored, key: entry}, indent=1) + "\n")


def on_paper(args: argparse.Namespace, processes: int = 64) -> None:
    """What 70B on 64 GPUs would send in a step. Counted from the shape; nothing is run."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(llama("70b"), dtype=torch.bfloat16)
    sizes = [
        (m.in_features, m.out_features)
        for name, m in base.named_modules()
        if name.rpartition(".")[2] in PROJECTIONS
    ]
    ends = sum(i + o for i, o in sizes)
    lora = args.r * ends
    bank = args.num_vectors * args.vector_length
    logits = args.r * ends // args.vector_length * args.num_vectors
    share = (processes - 1) / processes
    print(f"Llama-3-70B shape, {processes} processes, r={args.r}, float32 adapters, bytes a step")
    print(f"{'':12}{'trained':>14}{'gradients':>12}{'DDP, a GPU':>12}{'FSDP2, a GPU':>14}")
    for name, count in (("LoRA", lora), ("VB-LoRA", logits + bank)):
        gradients = 4 * count
        reduced = 2 * share * gradients  # a ring all-reduce: reduce-scatter, then all-gather
        # Gathered in bfloat16 for forward and backward, and gradients reduced in bfloat16.
        sharded = 3 * share * 2 * count
        cells = (gradients, reduced, sharded)
        print(f"{name:12}{count:14,d}" + "".join(f"{readable(int(c)):>13}" for c in cells))
    weights = sum(p.numel() for p in base.parameters())
    print(f"of which the bank: {bank:,d} numbers, gathered once: {readable(2 * bank)}")
    print(f"the frozen base itself, gathered twice: {readable(int(4 * share * weights))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["none", "ddp", "fsdp2"], default="none")
    parser.add_argument("--methods", nargs="*", help="of those that are measured; all by default")
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--paper", action="store_true", help="reckon 70B on 64 GPUs; run nothing")
    for name, value in (
        ("batch", 1), ("length", 2048), ("steps", 8), ("warm-up", 3), ("r", 4),
        ("num-vectors", 256), ("vector-length", 256),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.paper:
        on_paper(args)
        return
    if args.engine != "none":
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    found = measured(args)
    if is_first():
        keep(found, args)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
