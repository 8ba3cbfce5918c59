"""Does a search find better than a preset of the same bytes? 20 short trials on mini-OPT, CPU.

    python benchmarks/tune.py --out /tmp/search | tee benchmarks/results/tune.txt

The budget is the size of the file of the preset "topk-file". Two processes share the search, with
one seed. Then its best, the preset with the default rates, and the preset with the ten times larger
rates of `vblora-lab demo` are trained for as many steps with seeds that the search didn't see.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import torch

from vblora_lab import (
    PRESETS,
    SHORT_RUN_RATES,
    LearningRates,
    TrainingSession,
    Tuned,
    VBLoRAConfig,
    load_base,
    plan,
    tune,
)
from vblora_lab.planning.file_size import vblora_file_bytes

PRESET = "topk-file"
TRAINING = {"steps": 30, "batch_size": 8, "eval_examples": 16}
TRIALS, SEEDS, PROCESSES = 20, (1, 2), 2


def search(out: Path, budget: int, trials: int) -> Tuned:
    torch.set_num_threads(1)
    return tune(load_base(device="cpu"), "restaurants", budget, trials, out=out, **TRAINING)


def loss_of(config: VBLoRAConfig, rates: LearningRates, seed: int) -> float:
    torch.set_num_threads(1)
    session = TrainingSession(
        load_base(device="cpu"), config, "restaurants", learning_rates=rates, seed=seed,
        sample_count=0, select_every=0, **TRAINING,
    )  # fmt: skip
    return float(session.run().eval_losses[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the search")
    parser.add_argument("--trials", type=int, default=TRIALS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    preset = PRESETS[PRESET].config()
    budget = vblora_file_bytes(plan(load_base(device="cpu").model, preset))
    begun = time.monotonic()
    context = multiprocessing.get_context("spawn")
    given = (args.out, budget, args.trials)
    workers = [context.Process(target=search, args=given) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    tuned = search(*given)  # reads what they left
    print(tuned)
    print(f"{time.monotonic() - begun:.0f} s for the search, {PROCESSES} processes of one thread\n")
    compare(tuned, preset, budget)


def compare(tuned: Tuned, preset: VBLoRAConfig, budget: int) -> None:
    best = tuned.best
    rivals = {
        f"best of the search ({best.bytes:,} bytes)": (best.config, best.learning_rates),
        f"preset {PRESET}, default rates ({budget:,} bytes)": (preset, LearningRates()),
        f"preset {PRESET}, ten times those": (preset, SHORT_RUN_RATES),
    }
    print(f"validation loss by seed {SEEDS}, nats per token; the search had seed 0")
    jobs = [(*rival, seed) for rival in rivals.values() for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        losses = pool.starmap(loss_of, jobs, chunksize=1)
    for i, name in enumerate(rivals):
        own = losses[i * len(SEEDS) : (i + 1) * len(SEEDS)]
        each = "  ".join(f"{loss:.4f}" for loss in own)
        print(f"{name:50} {each}  mean {statistics.mean(own):.4f}")


if __name__ == "__main__":
    main()
