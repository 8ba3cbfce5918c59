"""Small random changes to the core, each run against its own module's tests: which go unnoticed?

    make mutants                                   # the sample that is always the same
    .venv/bin/python tools/mutants.py --per-module 20 --seed 3 speed/pool.py

cosmic-ray makes the changes (a comparison, an operator, a number) in a copy of the repository, one
at a time, and runs the tests that concern the module. A change that no test notices is shown with
its lines. Some change nothing that a program could see: look at the list, and decide.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of each module, the tests that are to notice. The core: what a wrong number would come from.
TESTS = {
    "admixture.py": "tests/test_admixture.py tests/tuner/test_parity.py",
    "speed/pool.py": "tests/speed/test_pool.py tests/speed/test_backward.py",
    "speed/backward.py": "tests/speed/test_backward.py",
    "speed/blocks.py": "tests/speed/test_blocks.py tests/speed/test_pool.py",
    "speed/mixing.py": "tests/speed/test_pool.py tests/tuner/test_parity.py",
    "tuner/layer.py": "tests/tuner/test_layer.py tests/tuner/test_parity.py",
    "tuner/wrapped.py": "tests/tuner/test_merging.py tests/tuner/test_layer.py",
    "tuner/formats.py": "tests/tuner/test_formats.py",
    "tuner/beside.py": "tests/tuner/test_strangers.py tests/tuner/test_formats.py",
    "tuner/banks.py": "tests/tuner/test_banks.py",
    "tuner/checks.py": "tests/tuner/test_config.py",
    "tuner/problems.py": "tests/tuner/test_targets.py",
    "tuner/sizes.py": "tests/planning/test_plan.py",
    "tuner/starts.py": "tests/tuner/test_starts.py",
    "planning/others.py": "tests/planning/test_plan.py",
    "inspection/selection.py": "tests/inspection/test_selection.py",
    "inspection/counterfactual.py": "tests/inspection/test_counterfactual.py",
    "train/batches.py": "tests/train/test_batches.py",
    "data/metrics.py": "tests/data",
}
SECONDS = 300  # a change may make a loop endless


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vblora-lab-mutants-") as folder:
        copy = Path(folder) / "copy"
        tracked = _output(["git", "ls-files"], ROOT).splitlines()
        for name in tracked:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        caught, missed = 0, []
        for module in options.modules or TESTS:
            noticed, unnoticed = _try(module, copy, options)
            caught, missed = caught + noticed, missed + unnoticed
            print(f"{module}: {noticed} of {noticed + len(unnoticed)} noticed", flush=True)
    for difference in missed:
        print(f"\n{difference}")
    print(f"\n{caught} of {caught + len(missed)} changes noticed")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", choices=[*TESTS, []], help="default: all")
    parser.add_argument("--per-module", type=int, default=4, help="changes of each (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="draws them")
    return parser.parse_args()


def _try(module: str, copy: Path, options: argparse.Namespace) -> tuple[int, list[str]]:
    """How many changes to a module its tests notice, and those that they don't."""
    tests = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -m 'not slow' {TESTS[module]}"
    config, session = copy / "mutants.toml", copy / "mutants.sqlite"
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "vblora_lab/{module}"\ntimeout = {SECONDS}.0\n'
        f'excluded-modules = []\ntest-command = "{tests}"\n'
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    cosmic_ray = [sys.executable, "-m", "cosmic_ray.cli"]
    _output([*cosmic_ray, "init", "--force", str(config), str(session)], copy)
    rng = random.Random(f"{options.seed} {module}")
    _keep_some(session, rng, options.per_module, _never_run(copy / "vblora_lab" / module))
    _output([*cosmic_ray, "exec", str(config), str(session)], copy)
    caught, missed = 0, []
    for line in _output([*cosmic_ray, "dump", str(session)], copy).splitlines():
        _, result = json.loads(line)
        if result is not None and result["test_outcome"] == "survived":
            missed.append(result["diff"].strip())
        elif result is not None:
            caught += 1
    return caught, missed


def _never_run(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations of a module begin and end: they are never evaluated."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    annotations = [getattr(node, "annotation", None) for node in nodes]
    annotations += [getattr(node, "returns", None) for node in nodes]
    return [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for node in annotations
        if node is not None
    ]


def _keep_some(session: Path, rng: random.Random, count: int, never_run: list) -> None:
    """Leave this many of the changes that a session is to try."""
    query = (
        "select operator_name, start_pos_row, start_pos_col, occurrence, job_id from mutation_specs"
    )
    with sqlite3.connect(session) as database:
        every = sorted(database.execute(query))
        jobs = [
            job
            for _, row, column, _, job in every
            if not any(begin <= (row, column) < end for begin, end in never_run)
        ]
        kept = set(rng.sample(jobs, min(count, len(jobs))))
        for job in {job for *_, job in every} - kept:
            database.execute("delete from mutation_specs where job_id = ?", (job,))
            database.execute("delete from work_items where job_id = ?", (job,))


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
