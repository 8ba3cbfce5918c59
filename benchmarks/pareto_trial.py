"""One trial: a method at given rates and a seed, trained once and measured as it would be stored.

What is stored is measured three times: as float32, as float16 and in 8 bits. Rounding happens after
training, nothing is trained again; it is that of `vblora_lab.tuner.precision`. Of VB-LoRA, what is
measured is what `save_adapter` writes: the bank is rounded, in 8 bits the top-k weights too (PEFT
loads those in float32 alone), and indices are kept as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from pareto_changes import ChangedSession
from torch import Tensor, nn

from vblora_lab import VBLoRAConfig
from vblora_lab.bases import Base
from vblora_lab.data import Task
from vblora_lab.errors import DivergedError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.selection import Selection
from vblora_lab.train import measure
from vblora_lab.train.batches import Row
from vblora_lab.train.methods import trained_parameters
from vblora_lab.train.prompts import IGNORED, Collator
from vblora_lab.tuner import formats
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.eight_bits import BANK_IN_EIGHT_BITS, from_eight_bits, to_eight_bits
from vblora_lab.tuner.precision import PRECISIONS, bytes_of, rounded
from vblora_lab.tuner.saving import full_state_dict

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
    bank = [next(iter(layers.values())).bank("default")] if layers else []
    logits = [each for layer in layers.values() for each in layer.logits("default")]
    changed = [*bank, *logits] if layers else trained
    before = [p.detach().clone() for p in changed]
    try:
        with torch.no_grad():
            yield _round_adapter(model, precision) if layers else (0, _round(trained, precision))
    finally:
        with torch.no_grad():
            for p, value in zip(changed, before, strict=True):
                p.copy_(value)


def _round(parameters: Iterable[Tensor], precision: str) -> int:
    """Round parameters in place, and say how many bytes they take."""
    taken = 0
    for p in parameters:
        p.copy_(rounded(p, precision))
        taken += bytes_of(p.numel(), precision)
    return taken


def _round_adapter(model: nn.Module, precision: str) -> tuple[int, int]:
    """Give VB-LoRA the numbers that its file in the top-k format would; bytes of (bank, rest)."""
    config = model.peft_config["default"]
    ours = full_state_dict(model)
    tensors = formats.packed({key: p.cpu() for key, p in ours.items()}, config.topk)
    if precision == "int8":
        file, header = to_eight_bits(tensors)
        tensors = from_eight_bits(file, header, "the file")
        bank = sum(file[name].nbytes for name in BANK_IN_EIGHT_BITS)
    else:
        file = tensors = formats.in_dtype(tensors, precision, config.topk)
        bank = file[formats.BANK_KEY].nbytes
    for key, tensor in formats.unpacked(tensors, config.num_vectors).items():
        ours[key].copy_(tensor)
    return bank, sum(tensor.nbytes for tensor in file.values()) - bank


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
