"""Runs kept by name in a folder. Keeping and reading them needs no torch.

A run is a folder as `layout` describes it, which `TrainingSession(out=...)` or `Runs.keep` wrote.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vblora_lab.errors import DataError, SessionError, nearest
from vblora_lab.files import whole_folder
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import ADAPTER, RESULT, SETTINGS, TRACE, read_json
from vblora_lab.runs.results import Comparison, Result, in_common
from vblora_lab.runs.trace import Trace

if TYPE_CHECKING:
    from peft import PeftModel

T = TypeVar("T")

NAME = re.compile(r"\w[\w .+-]*")


@dataclass(frozen=True, eq=False)
class Run:
    """A kept run: its folder, what it said, what it was made with, and what it came to."""

    name: str
    folder: Path
    trace: Trace
    settings: dict[str, Any]
    result: Result

    @property
    def adapter(self) -> Path:
        """The folder to load: an adapter, or a whole model after full fine-tuning.

        For VB-LoRA: `vblora_lab.from_pretrained(base_model, run.adapter)`.
        """
        return self.folder / ADAPTER


class Keepable(Protocol):
    """A run that `Runs.keep` can keep, such as a `TrainingSession`."""

    model: PeftModel

    @property
    def status(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def trace(self) -> Trace: ...


class Runs:
    """The runs in a folder, by name: ``runs["first"]``, ``list(runs)``, ``runs.compare()``.

    Args:
        folder: made when the first run is kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Of the runs that are here, in alphabetical order."""
        found = (file.parent.name for file in self.folder.glob(f"*/{TRACE}"))
        return sorted(name for name in found if not name.startswith("."))  # those are scratch

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def place(self, name: str) -> Path:
        """The folder for a new run, to give to `TrainingSession(out=...)`.

        Raises `SessionError` for a name that is taken or can't be one of a folder, and where a run
        would replace what lies there.
        """
        if not NAME.fullmatch(name):
            raise SessionError(
                f"a run can't be called {name!r}: begin with a letter or digit, and use letters, "
                "digits, spaces and _ . + - alone"
            )
        if name in self:
            raise SessionError(
                f"there is a run {name!r} in {self.folder} already; choose another name, or "
                "delete its folder first"
            )
        RunFolder(self.folder / name).check({}, resume=False)
        return self.folder / name

    def keep(self, name: str, session: Keepable, result: Result | None = None) -> Run:
        """Keep a run that was made without ``out``: trace, settings, and adapter or model.

        All of it, or nothing. Raises `SessionError` as `place` does, and for a session that has not
        ended or a folder that is not empty; `OSError` for what can't be written.
        """
        place = self.place(name)
        if session.status not in ("completed", "stopped"):
            raise SessionError(
                f"this session is {session.status}; only one that is completed or stopped is kept"
            )
        if place.exists() and any(place.iterdir()):
            raise SessionError(f"{str(place)!r} is not empty; choose another name, or empty it")
        with whole_folder(place) as new:
            folder = RunFolder(new)
            folder.open(session.settings)
            with folder.writing(ADAPTER) as aside:
                session.model.save_pretrained(str(aside))
            with folder.writing(TRACE) as aside:
                session.trace.save(aside)
        if result is not None:
            self.note(name, result)
        return self[name]

    def note(self, name: str, result: Result) -> None:
        """Write down what a run that is here came to, in place of what was noted before."""
        with RunFolder(self.folder / name).writing(RESULT) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")

    def __getitem__(self, name: str) -> Run:
        """Read a run. Raises `DataError` where there is none of that name, or it can't be read."""
        self._check_known(name)
        folder = self.folder / name
        trace = Trace.load(folder / TRACE)
        result = Result.read(folder / RESULT) or Result.of(trace)
        return Run(name, folder, trace, read_json(folder / SETTINGS), result)

    def compare(self, names: Sequence[str] | None = None) -> Comparison:
        """These runs side by side, or all; the caption says what they have in common.

        A file that can't be read is warned of and doesn't spoil the table. Without its result, a
        run has the numbers that its trace gives; without its settings, the caption is empty; and
        without its trace, it is left out. Raises `DataError` for a name that no run has.
        """
        read = [self._for_table(name) for name in (self.names() if names is None else names)]
        runs = [run for run in read if run is not None]
        return Comparison(
            {run.name: run.result for run in runs},
            {run.name: run.trace for run in runs},
            in_common([run.settings for run in runs]),
        )

    def _for_table(self, name: str) -> Run | None:
        """What can be read of a run; None without a trace."""
        self._check_known(name)
        folder = self.folder / name
        trace = _if_readable(Trace.load, folder / TRACE)
        if trace is None:
            return None
        settings = _if_readable(read_json, folder / SETTINGS) or {}
        result = _if_readable(Result.read, folder / RESULT) or Result.of(trace)
        return Run(name, folder, trace, settings, result)

    def _check_known(self, name: str) -> None:
        if name not in self:
            near = nearest(name, self.names())
            hint = f"did you mean {near!r}?" if near else f"there are {self.names()}"
            raise DataError(f"no run is called {name!r} in {self.folder}; {hint}")

    def __repr__(self) -> str:
        return f"Runs({str(self.folder)!r}): {', '.join(self) or 'none yet'}"

    def _repr_html_(self) -> str:
        return self.compare()._repr_html_() if len(self) else html.escape(repr(self))


def _if_readable(read: Callable[[Path], T], path: Path) -> T | None:
    """What a function reads from a file; None, with a warning, where it can't."""
    try:
        return read(path)
    except DataError as error:
        warnings.warn(f"{error}; the table of runs does without it", stacklevel=4)
        return None
