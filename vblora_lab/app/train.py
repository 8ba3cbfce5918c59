"""``vblora-lab train``: fine-tune a model, in a folder that outlives a kill."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vblora_lab.app.options import add_config_options, add_number_options, config_of
from vblora_lab.errors import DataError
from vblora_lab.runs.events import Event, Saved, SaveFailed
from vblora_lab.runs.layout import SETTINGS, TRACE

if TYPE_CHECKING:
    from vblora_lab.runs.trace import Trace


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `argparse`."""
    train = commands.add_parser(
        "train",
        help="fine-tune a model with VB-LoRA; keep checkpoints, adapter and trace in a folder",
        description="Fine-tune a base model with VB-LoRA on a task. Ctrl-C ends the "
        "run after the step in progress; --resume goes on where it ended, also after a crash. With "
        "torchrun or accelerate launch, several processes share each batch: torchrun "
        "--standalone --nproc-per-node 2 -m -- vblora_lab.cli train ...",
    )
    train.add_argument(
        "--model",
        default="mini-opt",
        help="mini-opt (the default), smollm2-135m, a hub name such as facebook/opt-125m, or a "
        "folder",
    )
    train.add_argument(
        "--task",
        default="restaurants",
        help="name of a task (default: restaurants), FILE.csv with mr and ref, or FILE.jsonl with "
        "instructions",
    )
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    train.add_argument("--preset", metavar="NAME", help="start from a preset; 'list' lists them")
    _add_numbers(train)
    for kind in ("bank", "logits", "other"):
        train.add_argument(
            f"--{kind}-rate",
            type=float,
            metavar="X",
            help=f"peak learning rate: {kind} (default: what suits the number of steps)",
        )
    add_config_options(train)
    train.set_defaults(run=run)


def _add_numbers(train: argparse.ArgumentParser) -> None:
    numbers = (
        ("steps", 200, 1, "optimizer steps"),
        ("batch-size", 8, 1, "pairs of meaning and text per step"),
        ("seed", 0, 0, "draws adapter and data order"),
        ("save-every", 50, 1, "steps between checkpoints"),
        ("keep", 2, 1, "checkpoints that stay"),
        ("eval-examples", 64, 0, "validation examples of an evaluation; 0: no evaluation"),
        ("eval-every", 0, 0, "steps between evaluations; 0: before and after"),
        ("sample-count", 3, 0, "sample texts; 0: none"),
        ("sample-every", 0, 0, "steps between sample texts; 0: before and after"),
    )
    add_number_options(train, numbers)


def run(args: argparse.Namespace) -> int:
    from vblora_lab.bases import load_base
    from vblora_lab.planning.presets import list_presets
    from vblora_lab.train import ProgressBar, TrainingSession, suited_rates
    from vblora_lab.train.processes import how_processes_train, leave_the_others

    if args.preset == "list":
        print(list_presets())
        return 0
    rates = {kind: getattr(args, f"{kind}_rate") for kind in ("bank", "logits", "other")}
    given = {kind: rate for kind, rate in rates.items() if rate is not None}
    config = config_of(args, task_type="CAUSAL_LM")
    options = (
        "steps", "batch_size", "seed", "out", "resume", "save_every", "keep", "eval_examples",
        "eval_every", "sample_count", "sample_every",
    )  # fmt: skip
    _tell(how_processes_train())
    kept = Kept(args.out)
    with _made(args.out):
        session = TrainingSession(
            load_base(args.model, device=_own_device()),
            config,
            args.task,
            learning_rates=replace(suited_rates(args.steps), **given),
            listeners=[ProgressBar(), kept],
            **{name: getattr(args, name) for name in options},
        )
    try:
        trace = session.run()
    finally:
        leave_the_others()
    if not session.is_first:
        return 0
    print(report(session.base.label, trace))
    if trace.reason == "stopped":
        print("Stopped early; the same command with --resume goes on.")
    print(kept.summary())
    if kept.problems:
        return 1
    return 130 if trace.reason == "stopped" else 0


def _tell(how: str) -> None:
    """Say in the first process, before anything is loaded, in how many the run trains."""
    from vblora_lab.train.processes import is_first_process

    if is_first_process():
        print(f"Trains in {how}", flush=True)


@contextlib.contextmanager
def _made(out: Path) -> Iterator[None]:
    """Make the folder of a run first: nobody would see a run that is kept nowhere.

    If the block fails, the folders that were made for it are gone again.

    Raises `DataError` where there can be no such folder.
    """
    new = [place for place in (out, *out.parents) if not place.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--out {str(out)!r} can't be used as a folder: {error}") from error
        yield
    except BaseException:
        for place in new:
            with contextlib.suppress(OSError):  # never made, or another process is at work in it
                place.rmdir()
        raise


def _own_device() -> str | None:
    """The GPU of this process, where torchrun or accelerate started one for each."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


class Kept:
    """Hears what a run saves and what it can't save, and says in the end what is there.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved: dict[str, None] = {}  # names, in the order of saving
        self.problems: list[str] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Saved():
                self._saved[Path(event.folder).name] = None
            case SaveFailed():
                self.problems.append(event.problem)

    def summary(self) -> str:
        """A line with the names of what is there now, and what isn't and why."""
        files = [name for name in (TRACE, SETTINGS) if (self._folder / name).is_file()]
        folders = [f"{name}/" for name in self._saved if (self._folder / name).is_dir()]
        there = ", ".join([*files, *folders]) or "nothing"
        return "; ".join([f"Left in {self._folder}: {there}", *dict.fromkeys(self.problems)])


def report(base: str, trace: Trace) -> str:
    """The losses of a run and a text that it wrote."""
    from vblora_lab.data.meaning import is_mr

    lines = [f"{base}: {trace.reason} after step {trace.steps[-1] if len(trace.steps) else 0}"]
    if len(trace.eval_losses) > 1:
        before, after = trace.eval_losses[0], trace.eval_losses[-1]
        lines.append(f"validation loss {before:.3f} -> {after:.3f} nats per token")
    for sample in trace.samples_after[:1]:
        lines += [f"{sample.mr}", f"  {sample.text}"]
        if is_mr(sample.mr):
            lines.append(f"  slot errors: {'; '.join(sample.slot_errors) or 'none'}")
    return "\n".join(lines)
