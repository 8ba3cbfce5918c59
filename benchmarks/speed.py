"""How fast: VB-LoRA here, PEFT's VB-LoRA, PEFT's LoRA and the frozen base, side by side.

    python benchmarks/speed.py                      # everything that suits this machine
    python benchmarks/speed.py training --rows opt-125m-8x512-qv --steps 40
    make bench

Each section runs its methods interleaved in one process and takes medians after a warm-up.
Models have the shapes of the named ones and random weights, which cost the same time. Writes
results/speed-<device>.json, one record a row; `benchmarks/report.py` makes the table and plots.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers
from torch import nn
from transformers import AutoConfig, OPTConfig, OPTForCausalLM

import vblora_lab
from vblora_lab.admixture import admixture
from vblora_lab.bases import share_weights
from vblora_lab.speed import kernels
from vblora_lab.speed.captured import CapturedStep
from vblora_lab.speed.mixing import mix_all
from vblora_lab.speed.pool import MatrixPool

RESULTS = Path(__file__).parent / "results"
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TARGETS = {"qv": ["q_proj", "v_proj"], "all": ALL_LINEAR}
MINI_OPT = Path(vblora_lab.__file__).parent / "assets" / "mini-opt"
OPT_SIZES = {
    "opt-125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "opt-1.3b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32},
}


@dataclass(frozen=True)
class Row:
    """One model, batch and adapter: what a line of the training table measures."""

    model: str
    batch: int
    length: int
    targets: str
    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    layers: int | None = None  # how many are adapted, from the first on; None for all

    @property
    def name(self) -> str:
        return f"{self.model}-{self.batch}x{self.length}-{self.targets}"

    def where(self) -> dict[str, Any]:
        which = {} if self.layers is None else {"layers_to_transform": list(range(self.layers))}
        return {"target_modules": TARGETS[self.targets]} | which

    def fields(self) -> dict[str, Any]:
        names = ("r", "num_vectors", "vector_length", "topk")
        return {n: getattr(self, n) for n in names} | self.where()


GPU_ROWS = [
    Row(model, batch, length, targets)
    for model, batch, length in (("opt-125m", 4, 64), ("opt-125m", 8, 512), ("opt-1.3b", 8, 512))
    for targets in ("qv", "all")
]
CPU_ROWS = [
    Row("mini-opt", 16, 64, "all", r=16, num_vectors=192, vector_length=128, topk=4),
    Row("opt-125m", 4, 64, "qv"),
    Row("opt-125m", 4, 64, "all"),
]


def base_model(name: str) -> OPTForCausalLM:
    """A model of the named shape with random weights: bf16 on a GPU, float32 on a CPU."""
    if name == "mini-opt":
        config = AutoConfig.from_pretrained(MINI_OPT)
    else:
        size = OPT_SIZES[name]
        width = size["hidden_size"]
        config = OPTConfig(**size, ffn_dim=4 * width, word_embed_proj_dim=width)
    torch.manual_seed(0)
    with DEVICE:
        model = OPTForCausalLM(config)
    return model.to(torch.bfloat16 if CUDA else torch.float32).train()


def frozen(base: nn.Module, row: Row) -> nn.Module:
    return base.requires_grad_(False)


def lora(base: nn.Module, row: Row) -> nn.Module:
    config = peft.LoraConfig(r=row.r, lora_alpha=row.r, **row.where())
    return peft.get_peft_model(base, config)


def peft_vblora(base: nn.Module, row: Row) -> nn.Module:
    return peft.get_peft_model(base, peft.VBLoRAConfig(**row.fields()))


def ours(base: nn.Module, row: Row) -> nn.Module:
    return vblora_lab.get_peft_model(base, vblora_lab.VBLoRAConfig(**row.fields()))


METHODS: dict[str, Callable[[nn.Module, Row], nn.Module]] = {
    "frozen base": frozen,
    "PEFT LoRA": lora,
    "PEFT VB-LoRA": peft_vblora,
    "vblora_lab": ours,
}


def adapted(method: str, base: nn.Module, row: Row) -> nn.Module:
    """A model over the base's weights, whose inputs get gradients as in any training from text.

    The frozen base has nothing to train, so its backward pass is that of the activations alone.
    """
    model = METHODS[method](share_weights(base), row)
    getattr(model, "enable_input_require_grads")()  # noqa: B009
    return model


def make_optimizer(model: nn.Module, **options: Any) -> torch.optim.Optimizer | None:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, **{"lr": 1e-3, "fused": True, **options}) if trained else None


def make_step(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Callable[[Any], torch.Tensor]:
    """Forward, backward and optimizer."""

    def step(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16) if CUDA else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return step


def captured_step(model: nn.Module) -> CapturedStep:
    lr = torch.tensor(1e-3, device=DEVICE)
    optimizer = make_optimizer(model, lr=lr, capturable=True)
    return CapturedStep(make_step(model, optimizer), model, optimizer)


def batch_of(row: Row, vocabulary: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(4, vocabulary, (row.batch, row.length), device=DEVICE)
    return {"input_ids": tokens, "labels": tokens}


def milliseconds(call: Callable[[], object]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if CUDA:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, warm_up: int) -> dict:
    """Median time of each call, one after the other in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            taken = milliseconds(call)
            if number >= warm_up:
                times[name].append(taken)
    return {name: round(statistics.median(taken), 4) for name, taken in times.items()}


# --- sections: each yields records


def training(args: argparse.Namespace) -> Iterator[dict]:
    for row in CPU_ROWS if not CUDA else GPU_ROWS:
        if args.rows and row.name not in args.rows:
            continue
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


def peak_memory(method: str, base: nn.Module, row: Row, batch: dict) -> float:
    """GiB at the peak of the third step, the base's weights included."""
    clean_up()
    model = adapted(method, base, row)
    step = make_step(model, make_optimizer(model))
    for _ in range(2):
        step(batch)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step(batch)
    peak = torch.cuda.max_memory_allocated() / 2**30
    del model, step
    clean_up()
    return round(peak, 3)


def waits(step: Callable, batch: dict) -> dict[str, int]:
    """How many times a step waits for the device, by file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in caught]
    return dict(Counter(places))


def clean_up() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


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


def admixture_alone(args: argparse.Namespace) -> Iterator[dict]:
    """All sub-vectors of Llama-2-13B, all linear, rank 6, bank 2048 x 256, and of fewer layers."""
    for layers in (1, 4, 12, 40) if CUDA else (1, 2):
        yield admixture_of(layers, args)
        clean_up()


def admixture_of(layers: int, args: argparse.Namespace) -> dict:
    """Forward and backward, and the least time that moving its logits can take."""
    r, num_vectors, length, topk = 6, 2048, 256, 2
    shapes = 4 * [(5120, 5120)] + 2 * [(5120, 13824)] + [(13824, 5120)]
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, device=DEVICE)
        return (0.1 * values).requires_grad_()

    bank = draw(num_vectors, length)
    logits = [
        (draw(r, size_in // length, num_vectors), draw(size_out // length, r, num_vectors))
        for size_in, size_out in layers * shapes
    ]
    inputs = [bank, *(part for pair in logits for part in pair)]
    sub_vectors = sum(part.shape[0] * part.shape[1] for pair in logits for part in pair)
    wide = sub_vectors // r * length
    slope = torch.randn(r, wide, generator=generator, device=DEVICE)

    def pooled() -> None:
        mixed = mix_all(logits, bank, topk, torch.float32)
        joined = torch.cat([m for pair in mixed for m in pair], dim=1)
        torch.autograd.grad(joined, inputs, slope)

    def only(enabled: bool) -> Callable[[], None]:
        def call() -> None:
            kernels.enabled, before = enabled, kernels.enabled
            try:
                pooled()
            finally:
                kernels.enabled = before

        return call

    def deterministic() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            pooled()
        finally:
            torch.use_deterministic_algorithms(False)

    def layer_by_layer() -> None:
        column = 0
        outputs, slopes = [], []
        for pair in logits:
            for part in pair:
                mixed = admixture(part, bank, topk)
                outputs.append(mixed)
                slopes.append(slope[:, column : column + mixed.numel() // r].reshape(mixed.shape))
                column += mixed.numel() // r
        torch.autograd.grad(outputs, inputs, slopes)

    calls = {"eager, pooled": only(False), "eager, layer by layer": layer_by_layer}
    if CUDA:
        calls |= {"kernels": only(True), "kernels, deterministic": deterministic}
        calls["kernels, captured"] = captured_kernels(logits, bank, topk, slope)
    record = {
        "section": "admixture",
        "row": f"{layers} layers, {sub_vectors} sub-vectors",
        "milliseconds": interleaved(calls, max(args.steps, 20), 5),
    }
    logit_bytes = sub_vectors * num_vectors * 4
    return record | {"logit_bytes": logit_bytes} | floor(logit_bytes)


def captured_kernels(
    logits: list, bank: torch.Tensor, topk: int, slope: torch.Tensor
) -> Callable[[], None]:
    """The two kernels as a captured step runs them: without Python's time for 560 tensors."""
    shaped = slope.view(slope.shape[0], -1, bank.shape[1])
    sources = [bank, *(part for pair in logits for part in pair)]

    def call() -> None:
        mixed = kernels.fused_admixture(logits, bank, topk, torch.float32)
        torch.autograd.grad(mixed, sources, shaped)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def floor(logit_bytes: int) -> dict[str, float]:
    """The time to read all logits and write their gradient once, at this device's copy speed."""
    source = torch.randn(2**28 if CUDA else 2**24, device=DEVICE)
    target = torch.empty_like(source)
    taken = interleaved({"copy": lambda: target.copy_(source)}, 20, 5)["copy"]
    bytes_per_ms = 2 * source.nbytes / taken
    return {
        "copy_gb_per_s": round(bytes_per_ms / 1e6, 1),
        "floor_milliseconds": round(2 * logit_bytes / bytes_per_ms, 4),
    }


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
    parser.add_argument("--rows", nargs="*", help="rows of the training section")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each method")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")
    device = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} CPU threads"
    about = {
        "device": device,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "command": f"python benchmarks/speed.py {' '.join(args.sections)} --steps {args.steps}",
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
