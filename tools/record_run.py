"""Train mini-OPT once and keep what it said: `python tools/record_run.py`, a minute or two.

The page `play/training.html` of the site plays it back (docs/play/run.trace), without Python. The
seed is fixed; another machine's losses differ in their last digits.
"""

from __future__ import annotations

from pathlib import Path

from vblora_lab import TrainingSession, VBLoRAConfig
from vblora_lab.runs.events import Event, Stepped
from vblora_lab.train import SHORT_RUN_RATES

RUN = Path(__file__).resolve().parents[1] / "docs" / "play" / "run.trace"
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
CONFIG = VBLoRAConfig(r=2, num_vectors=64, vector_length=64, target_modules=TARGETS)
TITLE = "mini-OPT learns to write about restaurants"
ABOUT = "VB-LoRA of rank 2 in all attention modules, a bank of 64 vectors of 64, 150 steps on a CPU"


def session() -> TrainingSession:
    """The run, ready to be trained. What is recorded of it is seldom enough for a small file."""
    return TrainingSession(
        "mini-opt", CONFIG, "restaurants", steps=150, batch_size=8, learning_rates=SHORT_RUN_RATES,
        seed=0, eval_every=25, sample_every=50, select_every=10, listeners=[_tell],
    )  # fmt: skip


def _tell(event: Event) -> None:
    if isinstance(event, Stepped) and event.step % 10 == 0:
        print(f"step {event.step}: loss {event.loss:.3f}", flush=True)


def main() -> None:
    session().run().save(RUN)
    print(f"{RUN.name}: {RUN.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
