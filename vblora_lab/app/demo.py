"""The whole road in one call: train the shipped model, look at it, measure it, store it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from vblora_lab.bases import MINI_OPT, load_base
from vblora_lab.data import load_task
from vblora_lab.errors import DataError
from vblora_lab.plots.modules import module_heatmap
from vblora_lab.plots.run import loss_curve
from vblora_lab.runs.progress import ProgressBar
from vblora_lab.train import SHORT_RUN_RATES, Sample, Trace, TrainingSession, measure
from vblora_lab.tuner.config import VBLoRAConfig

STEPS = 280
BATCH_SIZE = 16
TEST_EXAMPLES = 100


def demo_config() -> VBLoRAConfig:
    """What the demo injects: rank 16 in all linear layers, out of one bank of 192 x 128."""
    return VBLoRAConfig(
        r=16,
        num_vectors=192,
        vector_length=128,
        topk=4,
        target_modules="all-linear",
        save_only_topk_weights=True,
        task_type="CAUSAL_LM",
    )


def run_demo(
    out: str | Path, *, steps: int = STEPS, seed: int = 0, show_progress: bool = True
) -> dict[str, Any]:
    """Fine-tune mini-OPT on the restaurants task and leave everything in a folder.

    Writes ``adapter/`` (loads in PEFT), ``loss.png``, ``selection.png``, ``run.trace`` and
    ``summary.json``, and returns the summary: sizes in bytes, times in seconds, losses in nats
    per token, BLEU from 0 to 100, slot errors per slot on held-out meaning representations.

    Raises `DataError` where ``out`` can't be a folder, before any training, and passes on an
    interrupt, which leaves nothing in the folder.
    """
    start = time.monotonic()
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"out={str(out)!r} can't be used as a folder: {error}") from error

    session = TrainingSession(
        load_base(MINI_OPT),
        demo_config(),
        load_task("restaurants"),
        steps=steps,
        batch_size=BATCH_SIZE,
        learning_rates=SHORT_RUN_RATES,
        seed=seed,
        listeners=[ProgressBar()] if show_progress else [],
    )
    trace = session.run()
    if trace.reason == "stopped":
        raise KeyboardInterrupt  # the session stops cleanly, but half a demo shows nothing

    session.model.save_pretrained(str(out / "adapter"))
    loss_curve(trace).savefig(out / "loss.png", dpi=150)
    first, last = trace.selections[0][1], trace.selections[-1][1]
    module_heatmap(last, start=first).savefig(out / "selection.png", dpi=150)
    trace.save(out / "run.trace")
    examples = session.task.test[:TEST_EXAMPLES]
    summary = {
        **measure(session.model, session.tokenizer, session.task.domain, examples),
        "test_examples": len(examples),
        **_numbers(trace),
        "adapter_file_bytes": (out / "adapter" / "adapter_model.safetensors").stat().st_size,
        "steps": int(trace.steps[-1]),
        "seed": seed,
        "reason": trace.reason,
        "seconds": round(time.monotonic() - start, 1),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(report(trace, summary))
    return summary


def _numbers(trace: Trace) -> dict[str, Any]:
    return {
        "eval_loss_before": float(trace.eval_losses[0]),
        "eval_loss_after": float(trace.eval_losses[-1]),
        "trained_parameters": trace.trained_parameters,
        "stored_bytes": trace.stored_bytes,
        "lora_stored_bytes": trace.lora_stored_bytes,
    }


def report(trace: Trace, summary: dict[str, Any]) -> str:
    """One sample before and after, and a table of sizes and quality, as plain text."""
    share = summary["stored_bytes"] / summary["lora_stored_bytes"]
    rows = [
        ("trained parameters", f"{summary['trained_parameters']:,}"),
        ("stored, VB-LoRA", f"{summary['stored_bytes']:,} bytes"),
        ("stored, LoRA of the same rank", f"{summary['lora_stored_bytes']:,} bytes"),
        ("VB-LoRA / LoRA", f"{share:.1%}"),
        ("validation loss, before", f"{summary['eval_loss_before']:.3f} nats per token"),
        ("validation loss, after", f"{summary['eval_loss_after']:.3f} nats per token"),
        ("slot error rate", f"{summary['slot_error_rate']:.1%} of held-out slots"),
        ("BLEU", f"{summary['bleu']:.1f}"),
        ("time in all", f"{summary['seconds']:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    first = _said("Before", trace.samples_before[0])
    last = _said("After", trace.samples_after[0])
    return f"\n{trace.samples_before[0].mr}\n\n{first}\n\n{last}\n\n{table}\n"


def _said(when: str, sample: Sample) -> str:
    errors = "; ".join(sample.slot_errors) or "none"
    return f"{when}: {sample.text}\n        slot errors: {errors}"
