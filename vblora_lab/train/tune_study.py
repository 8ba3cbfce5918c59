"""The book of a search: which trials there are, which of them are done, and who works on which.

It is Optuna's study. In a folder it outlives the process, and several processes may share it: a
trial is worked on by whoever has its lock, which the system takes back from a process that is
killed. So a trial that is under way in the book, and that nobody has locked, is to be gone on with.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vblora_lab.errors import ConfigError, DataError, MissingExtraError, SessionError
from vblora_lab.files import whole_file
from vblora_lab.runs.layout import read_json

SETTINGS = "tune.json"
BOOK = "tune.journal"
LOCK = ".tune.lock"
FAILURE = "failure"
RANDOM_FIRST = 10
"""Trials that are drawn at random, before what is known of them guides the others."""


class Study:
    """A study, in a folder or in memory.

    Args:
        out: the folder, which is made; None for memory.
        settings: what a later call must be given alike to go on here, as plain data.
        seed: of the draws. Those of a trial depend on it, on the trial's number, and on what was
            known of the others: not on the process.
        prune_after: trials that run to their end before any is cut short.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: a search was begun in ``out`` with other settings.
        SessionError: there are folders in ``out`` that are called as trials are, and no search.
        DataError: ``out`` can't be used as a folder, or what lies there can't be read.
    """

    def __init__(
        self, out: Path | None, settings: dict[str, Any], *, seed: int, prune_after: int
    ) -> None:
        self._optuna = optuna()
        self._out, self._seed = out, seed
        self._held: dict[int, FileLock] = {}
        with _quiet(self._optuna):
            if out is not None:
                _open_folder(out, settings)
            self._study = self._optuna.create_study(
                study_name="tune",
                storage=self._storage(),
                pruner=self._optuna.pruners.MedianPruner(n_startup_trials=prune_after),
                direction="minimize",
                load_if_exists=True,
            )

    def take(self, trials: int, draw: Callable[[Any], Any]) -> Any:
        """The trial to work on: one that was left under way, else a new one; None for none.

        Args:
            trials: how many there are to be.
            draw: draws all that a new trial is to know.
        """
        with self._locked(), _quiet(self._optuna):
            there = self._study.get_trials(deepcopy=False)
            for trial in there:
                if not trial.state.is_finished() and self._hold(trial.number):
                    self._study.sampler = self._sampler(trial.number)
                    return self._optuna.trial.Trial(self._study, trial._trial_id)
            if len(there) >= trials:
                return None
            self._study.sampler = self._sampler(len(there))
            new = self._study.ask()
            self._hold(new.number)
            draw(new)
            return new

    def is_open(self) -> bool:
        """Whether a trial is under way, here or in another process."""
        return any(not trial.state.is_finished() for trial in self._study.get_trials(False))

    def tell(self, trial: Any, loss: float | None, failure: str = "") -> None:
        """Note how a trial ended: with a loss, cut short (None), or with a failure."""
        state = self._optuna.trial.TrialState
        with _quiet(self._optuna):
            if failure:
                trial.set_user_attr(FAILURE, failure)
            if loss is None:
                self._study.tell(trial, state=state.PRUNED)
            else:
                self._study.tell(trial, loss)
        self.give_back(trial)

    def give_back(self, trial: Any) -> None:
        """Let others work on a trial that was taken, if it wasn't given back."""
        lock = self._held.pop(trial.number, None)
        if lock is not None:
            lock.release()

    def ended(self) -> list[Any]:
        """The trials that have ended, by number, as Optuna's frozen trials."""
        return [trial for trial in self._study.get_trials(False) if trial.state.is_finished()]

    def _sampler(self, number: int) -> Any:
        """A new one for each trial, so that a process that goes on draws as the first one would."""
        return self._optuna.samplers.TPESampler(
            seed=(self._seed + number) % 2**32, n_startup_trials=RANDOM_FIRST, multivariate=False
        )

    def _storage(self) -> Any:
        if self._out is None:
            return None
        journal = importlib.import_module("optuna.storages.journal")
        backend = journal.JournalFileBackend(str(self._out / BOOK))
        return self._optuna.storages.JournalStorage(backend)

    def _locked(self) -> contextlib.AbstractContextManager[Any]:
        """While one process chooses a trial, others wait."""
        return contextlib.nullcontext() if self._out is None else FileLock(self._out / LOCK)

    def _hold(self, number: int) -> bool:
        """Take the lock of a trial; False where another has it."""
        if self._out is None:
            return True
        lock = FileLock(self._out / f".{trial_name(number)}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._held[number] = lock
        return True


def trial_name(number: int) -> str:
    """What a trial and its run are called: "trial-007"."""
    return f"trial-{number:03d}"


def optuna() -> Any:
    """The module. Raises `MissingExtraError` where it is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtraError('tune needs Optuna: pip install "vblora-lab[tune]"')
    return importlib.import_module("optuna")


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Inside the block Optuna logs nothing but warnings; then as before."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _open_folder(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder and note the settings; raises as `Study`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"out={str(out)!r} can't be used as a folder: {error}") from error
    with FileLock(out / LOCK):
        before = read_json(out / SETTINGS)
        if not before:
            taken = sorted(path.name for path in out.glob("trial-*"))
            if taken:
                raise SessionError(
                    f"{str(out)!r} holds {taken[0]}, but no {SETTINGS}: no search wrote it that "
                    "could go on here. Move it away, or choose another folder."
                )
            with whole_file(out / SETTINGS) as new:
                new.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            return
    for name, value in json.loads(json.dumps(settings)).items():
        if before.get(name) != value:
            raise ConfigError(
                f"{name}={value!r}, but the search in {str(out)!r} was begun with "
                f"{before.get(name)!r}. Go on with the same, or choose another folder.",
                field=name,
                suggestion=before.get(name),
            )
