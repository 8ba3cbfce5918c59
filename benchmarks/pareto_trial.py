"""One trial: a method at given rates and a seed, trained once and measured as it would be stored.

What is stored is measured three times: as float32, as float16 and in 8 bits. Rounding happens after
training, nothing is trained again. 8 bits are whole numbers with one float16 scale for each 64 of
them (the largest magnitude is 127). Of VB-LoRA, the bank and the top-k weights are rounded, and
indices are kept as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from pareto_changes import ChangedSession
from torch import Tensor, nn

from vblora_lab import VBLoRAConfig
from vblora_lab.admixture import choose
from vblora_lab.bases import Base
from vblora_lab.data import Task
from vblora_lab.errors import DivergedError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.selection import Selection
from vblora_lab.train import measure
from vblora_lab.train.batches import Row
from vblora_lab.train.methods import trained_parameters
from vblora_lab.train.prompts import IGNORED, Collator
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.formats import index_dtype
from vblora_lab.tuner.frozen import NEVER

PRECISIONS = ("float32", "float16", "int8")
BLOCK = 64  # numbers that share a scale in 8 bits
KINDS: dict[str, Callable[..., peft.PeftConfig]] = {
    "VB-LoRA": VBLoRAConfig,
    "LoRA": peft.LoraConfig,
    "VeRA": peft.VeraConfig,
    "(IA)3": peft.IA3Config,
    "RandLoRA": peft.RandLoraConfig,
    "FourierFT": peft.FourierFTConfig,
    "LN tuning": peft.LNTuningConfig,
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is trained; a trial of the same content is never trained again.

    Attributes:
        base, task: names, for `load_base` and the programme's tasks.
        name: of the method and its size, as it is shown.
        kind, fields: of `KINDS`, and what its config is made of.
        rate: the peak rate, of the bank for VB-LoRA.
        ratio: the rate of VB-LoRA's logits, in rates of the bank.
        change: what differs from plain training, see `ChangedSession`.
        texts: how many texts are written for BLEU and slot errors, 0 for none.
        validation: how many validation examples are measured, the first ones; None for all.
    """

    base: str
    task: str
    steps: int
    batch_size: int
    name: str
    kind: str
    fields: Mapping[str, Any]
    rate: float
    seed: int
    ratio: float = 10.0
    change: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    texts: int = 0
    validation: int | None = None

    @functools.cached_property
    def key(self) -> str:
        """A name for this content: 16 hex digits. How it is shown doesn't count."""
        content = dataclasses.asdict(self)
        del content["name"]
        if self.validation is None:
            del content["validation"]
        text = json.dumps(content, sort_keys=True, default=sorted)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def config(self) -> peft.PeftConfig:
        with warnings.catch_warnings():
            # Random matrices are drawn again from their seed, as the methods' papers count bytes.
            warnings.filterwarnings("ignore", message=".*[Ss]pecified to not save")
            return KINDS[self.kind](**self.fields)


def run(
    trial: Trial, base: Base, task: Task, other: Callable[[str], Task], keep: Path
) -> dict[str, Any]:
    """Train, measure, and say what came of it, as plain data.

    Args:
        trial: what to do; base and task are what it names.
        other: gives a task by its name, for an adapter that takes the bank of another task.
        keep: folder for banks that several trials take, and for selections.
    """
    start = time.monotonic()
    session = ChangedSession(trial, base, task, other, keep)
    try:
        trace = session.run()
    except DivergedError as error:
        return {"loss": dict.fromkeys(PRECISIONS), "error": str(error)}
    seconds = time.monotonic() - start
    rows = session.validation_rows[: trial.validation]
    quality, losses, sizes = {}, {}, {}
    for precision in PRECISIONS[:1] if trial.change.get("watch") else PRECISIONS:
        with stored_as(session.model, precision) as (bank, rest):
            losses[precision] = validation_loss(session.model, base, rows)
            sizes[precision] = {"bank": bank, "rest": rest}
            if trial.texts and precision == "float32":
                examples = task.test[: trial.texts]
                quality = measure(session.model, base.tokenizer, task.domain, examples)
    return {
        "loss": {name: loss if math.isfinite(loss) else None for name, loss in losses.items()},
        "bytes": sizes,
        "trained_parameters": trained_parameters(session.model),
        **quality,
        **({"selection": chosen(session, trial, keep)} if session.first_selection else {}),
        "seconds_per_step": trace.seconds_per_step,
        "seconds": {"training": seconds, "all": time.monotonic() - start},
        "device": torch.cuda.get_device_name() if base.model.device.type == "cuda" else "CPU",
    }


@torch.no_grad()
def validation_loss(model: nn.Module, base: Base, rows: list[Row]) -> float:
    """Mean cross-entropy in nats over all completion tokens, in bfloat16 autocast on a GPU."""
    collate = Collator(base.tokenizer.pad_token_id)
    device = base.model.device
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    total = count = 0.0
    model.eval()
    for i in range(0, len(rows), 32):
        batch = collate(rows[i : i + 32])
        tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        total += loss.item() * tokens
        count += tokens
    return total / count


@contextmanager
def stored_as(model: nn.Module, precision: str) -> Iterator[tuple[int, int]]:
    """Within, the model computes what its stored file would give; yields bytes (bank, the rest).

    The bank counts as stored even where it was never trained; who wants to draw it from its seed
    can leave its bytes out.
    """
    layers = adapted_layers(model, "default")
    trained = [p for p in model.parameters() if p.requires_grad]
    changed = [next(iter(layers.values())).bank("default")] if layers else trained
    logits = [each for layer in layers.values() for each in layer.logits("default")]
    before = [p.detach().clone() for p in (*changed, *logits)]
    try:
        with torch.no_grad():
            first = sum(_round(p, precision) for p in changed)
            rest = _round_choices(layers, precision) if layers else 0
        yield (first, rest) if layers else (0, first)
    finally:
        with torch.no_grad():
            for p, value in zip((*changed, *logits), before, strict=True):
                p.copy_(value)


def _round(p: Tensor, precision: str) -> int:
    """Round a tensor in place, and say how many bytes it takes."""
    p.copy_(rounded(p, precision))
    return bytes_of(p.numel(), precision)


def bytes_of(numbers: int, precision: str) -> int:
    """What so many numbers take."""
    if precision == "int8":
        return numbers + 2 * math.ceil(numbers / BLOCK)
    return numbers * {"float32": 4, "float16": 2}[precision]


def rounded(values: Tensor, precision: str) -> Tensor:
    """Float32 values as they come back from a file of this precision."""
    if precision == "float32":
        return values
    if precision == "float16":
        return values.half().float()
    flat = values.flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % BLOCK)]).view(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half().float()
    codes = (blocks / scale.clamp_min(1e-12)).round().clamp(-127, 127)
    return (codes * scale).flatten()[: len(flat)].view_as(values)


def _round_choices(layers: Mapping[str, Any], precision: str) -> int:
    """Round the weights of all choices, all but the last of each, which is what is left to 1."""
    logits = [each for layer in layers.values() for each in layer.logits("default")]
    first = next(iter(layers.values()))
    topk, vectors = first.topk["default"], logits[0].shape[-1]
    picked = [choose(each.view(-1, vectors), topk) for each in logits]
    shares = rounded(torch.cat([weights[:, :-1] for _, weights in picked]), precision)
    sizes = [len(indices) for indices, _ in picked]
    for each, (indices, _), part in zip(logits, picked, shares.split(sizes), strict=True):
        weights = torch.cat([part, 1 - part.sum(1, keepdim=True)], 1).clamp_min(1e-12)
        rows = each.view(-1, vectors)
        rows.fill_(NEVER)
        rows.scatter_(1, indices, weights.log())
    index_bytes = sum(sizes) * topk * index_dtype(vectors).itemsize
    return index_bytes + bytes_of(shares.numel(), precision)


def chosen(session: ChangedSession, trial: Trial, keep: Path) -> dict[str, Any]:
    """What became of the choices, beside what chance would do; both selections go to a file."""
    before, after = session.first_selection, read_selection(session.model)
    (keep / "selections").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        keep / "selections" / f"{trial.key}.npz",
        first=np.sort(before.indices, 1).astype(np.int16),
        last=np.sort(after.indices, 1).astype(np.int16),
        weights=after.weights.astype(np.float16),
    )
    return {
        "vectors": after.num_vectors,
        "sub_vectors": len(after.indices),
        "churn": after.churn(before),
        "entropy": float(after.entropy().mean()),
        "usage": usage(after),
        "usage_before": usage(before),
        "sharing": sharing(after),
        "by_chance": by_chance(after),
    }


def usage(selection: Selection) -> float:
    """How unevenly the bank is chosen: standard deviation of the counts over their mean."""
    counts = selection.counts()
    return float(counts.std() / counts.mean())


def sharing(selection: Selection) -> float:
    """The mean of `Selection.sharing` over pairs of different layers."""
    shares = selection.sharing()
    n = len(shares)
    return float((shares.sum() - np.trace(shares)) / (n * (n - 1))) if n > 1 else math.nan


def by_chance(selection: Selection, draws: int = 60) -> dict[str, list[float]]:
    """95% of what usage and sharing come to if each sub-vector chose its vectors at random.

    It keeps its weights.
    """
    rng = np.random.default_rng(0)
    n, topk = selection.indices.shape
    found: dict[str, list[float]] = {"usage": [], "sharing": []}
    for _ in range(draws):
        indices = rng.random((n, selection.num_vectors), np.float32).argpartition(topk, 1)[:, :topk]
        drawn = dataclasses.replace(selection, indices=indices.astype(np.int32))
        found["usage"].append(usage(drawn))
        found["sharing"].append(sharing(drawn))
    return {name: list(np.quantile(values, [0.025, 0.975])) for name, values in found.items()}
