"""How fast: VB-LoRA here, PEFT's VB-LoRA, PEFT's LoRA and the frozen base, side by side.

    python benchmarks/speed.py                      # everything that suits this machine
    python benchmarks/speed.py training --rows opt-125m-8x512-qv --steps 40
    python benchmarks/speed.py large --rows llama-3-8b-1x2048-llama-all-nf4
    make bench

Each section runs its methods interleaved in one process and takes medians after a warm-up.
Models have the shapes of the named ones and random weights, which cost the same time. Writes
results/speed-<device>.json, one record per row; `benchmarks/report.py` makes the table and plots.
What is measured is in `speed_rows.py`, and how in `speed_clock.py`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers
from speed_admixture import admixture_alone
from speed_clock import clean_up, interleaved, milliseconds, peak_memory, waits
from speed_compiled import COMPILED_ROWS, compiled
from speed_large import LARGE_ROWS, large, mixed
from speed_peers import installed
from speed_rows import (
    CPU_ROWS,
    CUDA,
    DEVICE,
    GPU_ROWS,
    METHODS,
    Row,
    adapted,
    base_model,
    batch_of,
    captured_step,
    make_optimizer,
    make_step,
    selected,
)
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

import vblora_lab
from vblora_lab.bases import share_weights
from vblora_lab.speed.pool import MatrixPool

RESULTS = Path(__file__).parent / "results"
# --- sections: each yields records; others are in speed_admixture.py, _compiled.py and _large.py


def training(args: argparse.Namespace) -> Iterator[dict]:
    for row in selected(CPU_ROWS if not CUDA else GPU_ROWS, args.rows):
        base = base_model(row.model)
        batch = batch_of(row, base.config.vocab_size)
        memory = {}
        if CUDA:
            for method in METHODS:
                memory[method] = peak_memory(method, base, row, batch)
        models = {method: adapted(method, base, row) for method in METHODS}
        steps = {method: make_step(m, make_optimizer(m)) for method, m in models.items()}
        calls = {name: partial(step, batch) for name, step in steps.items()}
        if CUDA:
            captured = captured_step(adapted("vblora_lab", base, row))
            calls["vblora_lab, captured"] = partial(captured, batch)
        record = {"section": "training", "row": row.name, **asdict(row)}
        record["milliseconds"] = interleaved(calls, args.steps, args.warm_up)
        if CUDA:
            record["captured"] = captured.reason or "yes"
        record["peak_gib"] = memory
        yield record
        if CUDA:
            yield {"section": "synchronisation", "row": row.name} | {
                "waits": {name: waits(step, batch) for name, step in steps.items()}
            }
        del base, models, steps, calls
        captured = None
        clean_up()


def checkpointing(args: argparse.Namespace) -> Iterator[dict]:
    """Steps with gradient checkpointing, and what mixing layer by layer would cost instead."""
    row = Row("opt-125m", 4, 64, "all") if CUDA else CPU_ROWS[0]
    base = base_model(row.model)
    batch = batch_of(row, base.config.vocab_size)

    def layer_by_layer(step: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
        def call(batch: Any) -> torch.Tensor:
            with mock.patch.object(MatrixPool, "held", lambda _: nullcontext()):
                return step(batch)

        return call

    for use_reentrant in (True, False):
        steps = {}
        for method in METHODS:
            model = adapted(method, base, row)
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            steps[method] = make_step(model, make_optimizer(model))
        steps["vblora_lab, layer by layer"] = layer_by_layer(steps["vblora_lab"])
        calls = {name: partial(step, batch) for name, step in steps.items()}
        yield {
            "section": "checkpointing",
            "row": f"{row.name}-{'reentrant' if use_reentrant else 'not-reentrant'}",
            "milliseconds": interleaved(calls, args.steps, args.warm_up),
        }
    clean_up()


def generation(args: argparse.Namespace) -> Iterator[dict]:
    """Milliseconds per token, greedy, unmerged."""
    tokens = 64
    name = "opt-125m" if CUDA else "mini-opt"
    for row in (r for r in (GPU_ROWS if CUDA else CPU_ROWS) if r.model == name and r.length == 64):
        base = base_model(name)
        models = {method: adapted(method, base, row).eval() for method in METHODS}
        for batch in (1, 8):
            prompt = torch.randint(4, base.config.vocab_size, (batch, 16), device=DEVICE)
            attention = torch.ones_like(prompt)
            calls = {
                method: lambda model=model, prompt=prompt, attention=attention: model.generate(
                    input_ids=prompt,
                    attention_mask=attention,
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                )
                for method, model in models.items()
            }
            times = interleaved(calls, max(5, args.steps // 4), 2)
            per_token = {method: round(taken / tokens, 4) for method, taken in times.items()}
            yield {
                "section": "generation",
                "row": f"{row.name}-batch-{batch}",
                "milliseconds": per_token,
            }
        del base, models
        clean_up()


def growth(args: argparse.Namespace) -> Iterator[dict]:
    """How time and memory of a step grow with adapted layers, bank size and rank."""
    start = replace((GPU_ROWS if CUDA else CPU_ROWS)[1], layers=12, r=4, num_vectors=256)
    sweeps: dict[str, tuple[int, ...]] = {
        "layers": (1, 3, 6, 9, 12),
        "num_vectors": (64, 256, 1024, 4096),
        "r": (1, 4, 16, 64) if CUDA else (1, 4, 16),
    }
    base = base_model(start.model)
    batch = batch_of(start, base.config.vocab_size)
    for field, values in sweeps.items():
        for value in values:
            row = replace(start, **{field: value})
            memory = {m: peak_memory(m, base, row, batch) for m in METHODS} if CUDA else {}
            models = {method: adapted(method, base, row) for method in METHODS}
            steps = {m: make_step(model, make_optimizer(model)) for m, model in models.items()}
            calls: dict[str, Any] = {name: partial(step, batch) for name, step in steps.items()}
            if CUDA:
                captured = captured_step(adapted("vblora_lab", base, row))
                calls["vblora_lab, captured"] = partial(captured, batch)
            yield {
                "section": "growth",
                "row": f"{row.name}, {field}={value}",
                "field": field,
                "value": value,
                "milliseconds": interleaved(calls, args.steps, args.warm_up),
                "peak_gib": memory,
            }
            del models, steps, calls
            captured = None
            clean_up()


def profile(args: argparse.Namespace) -> Iterator[dict]:
    """Where a step's time goes: kernels launched, and how long the device is at work."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    for row in GPU_ROWS[2:] if CUDA else CPU_ROWS[1:]:
        base = base_model(row.model)
        batch = batch_of(row, base.config.vocab_size)
        for method in METHODS:
            model = adapted(method, base, row)
            step = make_step(model, make_optimizer(model))
            for _ in range(args.warm_up):
                step(batch)
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * CUDA
            with profiled(activities=activities) as run:
                for _ in range(3):
                    step(batch)
            events = [e for e in run.events() if "CUDA" in str(e.device_type)] if CUDA else []
            record = {"section": "profile", "row": row.name, "method": method}
            if CUDA:
                busy = sum(e.time_range.elapsed_us() for e in events) / 3e3
                record |= {"device_milliseconds": round(busy, 3), "kernels": len(events) // 3}
            else:
                table = sorted(run.key_averages(), key=lambda e: -e.self_cpu_time_total)[:8]
                record["cpu_milliseconds"] = {
                    e.key: round(e.self_cpu_time_total / 3e3, 2) for e in table
                }
            yield record
            del model, step
        del base
        clean_up()


def snapshots(args: argparse.Namespace) -> Iterator[dict]:
    """What reading the selection after every step adds to the step."""
    for row in GPU_ROWS[:1] if CUDA else CPU_ROWS[:2]:
        base = base_model(row.model)
        batch = batch_of(row, base.config.vocab_size)
        model = adapted("vblora_lab", base, row)
        step = make_step(model, make_optimizer(model))
        seen = vblora_lab.read_selection(model).sub_vectors
        read = partial(vblora_lab.read_selection, model, sub_vectors=seen)
        calls: dict[str, Callable[[], object]] = {
            "step": partial(step, batch),
            "step and snapshot": lambda step=step, batch=batch, read=read: (step(batch), read()),
        }
        times = interleaved(calls, 2 * args.steps, args.warm_up)
        yield {"section": "snapshots", "row": row.name, "milliseconds": times}


def injection(args: argparse.Namespace) -> Iterator[dict]:
    """Injecting, saving and loading an adapter; the base has no memory, as it isn't touched."""
    size = {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40}
    config = OPTConfig(**size, ffn_dim=4 * 5120, word_embed_proj_dim=5120, vocab_size=1024)
    row = Row("13b", 1, 1, "all", r=6, num_vectors=2048)
    fields = row.fields() | {"save_only_topk_weights": True}
    with torch.device("meta"):
        base = OPTForCausalLM(config)
    for name, parameter in list(base.named_parameters()):
        # One number, seen as a whole matrix: nothing here reads it.
        weightless = nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
        set_parameter(base, name, weightless)
    features = [(5120, 5120)] * 4 + [(5120, 20480), (20480, 5120)]

    def create_once() -> list[nn.Parameter]:
        bank = torch.empty(row.num_vectors, row.vector_length).uniform_(-0.02, 0.02)
        parameters = [nn.Parameter(bank)]
        for size in (size for pair in 40 * features for size in pair):
            shape = (row.r, size // row.vector_length, row.num_vectors)
            parameters.append(nn.Parameter(torch.empty(shape).normal_(std=0.1)))
        return parameters

    times: dict[str, list[float]] = {}
    for _ in range(3):
        # Kept until the time is taken, as an injected adapter is: else one piece of memory, which
        # the processor has at hand, would serve for all.
        created: list[list[nn.Parameter]] = []
        taken = milliseconds(lambda: created.append(create_once()))  # noqa: B023
        times.setdefault("create the parameters", []).append(taken)
        created.clear()
        made: list[nn.Module] = []
        inject = partial(vblora_lab.get_peft_model, share_weights(base))
        config_of_adapter = vblora_lab.VBLoRAConfig(**fields)
        taken = milliseconds(lambda: made.append(inject(config_of_adapter)))  # noqa: B023
        times.setdefault("inject", []).append(taken)
        with tempfile.TemporaryDirectory() as folder:
            taken = milliseconds(partial(made[0].save_pretrained, folder))
            times.setdefault("save top-k", []).append(taken)
            stored = (Path(folder) / "adapter_model.safetensors").stat().st_size
            expected = made[0].base_model.stored_bytes()
            load = partial(vblora_lab.from_pretrained, share_weights(base), folder)
            times.setdefault("load top-k", []).append(milliseconds(load))
    yield {
        "section": "injection",
        "row": "OPT-13b shape, all linear, r=6, bank 2048x256",
        "milliseconds": {name: round(min(taken), 1) for name, taken in times.items()},
        "file_bytes": stored,
        "predicted_tensor_bytes": expected,
    }


def set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, parameter)


SECTIONS = {
    "training": training,
    "compiled": compiled,
    "large": large,
    "mixed": mixed,
    "checkpointing": checkpointing,
    "profile": profile,
    "growth": growth,
    "generation": generation,
    "admixture": admixture_alone,
    "snapshots": snapshots,
    "injection": injection,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--rows", nargs="*", help="of training, compiled and large")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each method")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    named = {row.name for row in (*CPU_ROWS, *GPU_ROWS, *COMPILED_ROWS, *LARGE_ROWS)}
    if unknown := set(args.rows or ()) - named:
        parser.error(
            f"no such rows: {', '.join(sorted(unknown))}. There are {', '.join(sorted(named))}"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")
    device = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} CPU threads"
    chosen = [*args.sections, *(["--rows", *args.rows] if args.rows else [])]
    about = {
        "device": device,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        **installed(),
        "command": " ".join(["python benchmarks/speed.py", *chosen, f"--steps {args.steps}"]),
        "date": time.strftime("%Y-%m-%d"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"speed-{'cuda' if CUDA else 'cpu'}.json"
    records = []
    for section in args.sections or SECTIONS:
        for record in SECTIONS[section](args):
            print(json.dumps(record), flush=True)
            records.append(record)
            path.write_text(json.dumps({"about": about, "records": records}, indent=1) + "\n")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
