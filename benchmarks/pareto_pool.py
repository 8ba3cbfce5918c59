"""Worker processes that train trials side by side, on one GPU or several, until there are no more.

Each process loads a base when its first trial needs it. A process that breaks is replaced; its
trial is told as failed, and tried again by the next call.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pareto_trial
import torch
from pareto_trial import Trial

from vblora_lab import load_base, load_task
from vblora_lab.bases import Base
from vblora_lab.data import Task, read_csv
from vblora_lab.data.e2e import task_of

Tasks = dict[str, dict[str, Path]]
Choose = Callable[[set[str]], Trial | None]


class Worker:
    """A process with a trial, or without one."""

    def __init__(self, number: int, tasks: Tasks, keep: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, number, tasks, keep), daemon=True
        )
        self.process.start()
        theirs.close()
        self.trial: Trial | None = None
        self.begun = 0.0

    def give(self, trial: Trial) -> None:
        self.trial, self.begun = trial, time.monotonic()
        self.pipe.send(trial)


def run_all(
    choose: Choose,
    told: Callable[[Trial, dict[str, Any]], None],
    tasks: Tasks,
    keep: Path,
    workers: int,
    deadline: float,
) -> None:
    """Train what ``choose`` gives, given the keys that are being trained, until it has no more.

    Args:
        choose: the next trial, or None while there is none.
        told: gets each outcome, or ``{"failed": why}``.
        tasks: where the training and test examples of tasks with files are.
        keep: folder for what workers leave.
        deadline: in time.monotonic's seconds. Workers are ended then, and none begins what will
            likely not be finished.
    """
    pool = [Worker(i, tasks, keep) for i in range(workers)]
    typical: dict[str, float] = {}  # seconds of the latest trial of a base
    try:
        while time.monotonic() < deadline:
            for worker in pool:
                if worker.trial is None:
                    trial = choose({w.trial.key for w in pool if w.trial})
                    if trial is None:
                        break
                    if time.monotonic() + 0.9 * typical.get(trial.base, 0) > deadline:
                        break
                    worker.give(trial)
            busy = [worker for worker in pool if worker.trial]
            if not busy:
                return
            left = max(0.0, deadline - time.monotonic())
            for pipe in wait([worker.pipe for worker in busy], timeout=left):
                worker = next(w for w in pool if w.pipe is pipe)
                trial, outcome = worker.trial, _receive(worker.pipe)
                assert trial is not None
                if "failed" in outcome:
                    pool[pool.index(worker)] = Worker(worker.number, tasks, keep)
                    worker.process.terminate()
                else:
                    typical[trial.base] = time.monotonic() - worker.begun
                worker.trial = None
                told(trial, outcome)
    finally:
        for worker in pool:
            worker.process.terminate()


def _receive(pipe: Connection) -> dict[str, Any]:
    try:
        outcome: dict[str, Any] = pipe.recv()
    except (EOFError, ConnectionError) as error:
        return {"failed": f"its process ended: {error!r}"}
    return outcome


def _work(pipe: Connection, number: int, tasks: Tasks, keep: Path) -> None:
    _choose_gpu(number)
    torch.set_num_threads(1)
    bases: dict[str, Base] = {}
    loaded: dict[str, Task] = {}

    def task(name: str) -> Task:
        if name not in loaded:
            files = tasks.get(name)
            if files is None:
                loaded[name] = load_task(name)
            else:
                parts = [read_csv(files["train"]), (), read_csv(files["test"])]
                loaded[name] = task_of(parts)
        return loaded[name]

    while True:
        trial = pipe.recv()
        try:
            if trial.base not in bases:
                bases[trial.base] = load_base(trial.base)
            outcome = pareto_trial.run(trial, bases[trial.base], task(trial.task), task, keep)
        except BaseException as error:
            pipe.send({"failed": "".join(traceback.format_exception(error))})
            raise
        pipe.send(outcome)


def _choose_gpu(number: int) -> None:
    """One GPU of those that are visible; to be called before CUDA is begun."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
