"""Runs kept by name in a folder, and comparisons of them. Reading needs numpy alone.

A run is a folder as `train.folder` describes it, which `TrainingSession(out=...)` and `Runs.keep`
write: run.trace, run.json, adapter/, and for a run that was measured also result.json.
"""

from __future__ import annotations

import dataclasses
import difflib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vblora_lab.errors import DataError, SessionError
from vblora_lab.runs.layout import ADAPTER, RESULT, SETTINGS, TRACE, read_json
from vblora_lab.runs.trace import Trace
from vblora_lab.tables import as_html, as_text, number

if TYPE_CHECKING:
    from peft import PeftModel


NAME = re.compile(r"\w[\w .+-]*")


@dataclass(frozen=True)
class Result:
    """What a run came to; NaN for what was not measured.

    Attributes:
        trained_parameters: how many numbers were trained.
        stored_bytes: of the tensors that keeping the result takes.
        loss: on validation examples, in nats per completion token.
        bleu: 0 to 100, on held-out examples.
        slot_error_rate: errors per slot, on held-out examples.
        seconds_per_step: median.
    """

    trained_parameters: int
    stored_bytes: int
    loss: float = math.nan
    bleu: float = math.nan
    slot_error_rate: float = math.nan
    seconds_per_step: float = math.nan

    @classmethod
    def of(cls, trace: Trace, **measured: float) -> Result:
        """From what a run said, and what was measured besides."""
        told: dict[str, Any] = {
            "trained_parameters": trace.trained_parameters,
            "stored_bytes": trace.stored_bytes,
            "seconds_per_step": trace.seconds_per_step,
        }
        if len(trace.steps) and trace.steps[-1] in trace.eval_steps:  # else it is of an older state
            told["loss"] = float(trace.eval_losses[-1])
        return cls(**(told | measured))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results and traces of runs, by name; a table in a notebook and in a terminal.

    For the curves: `plots.loss_curves(comparison.traces)`.
    """

    results: Mapping[str, Result]
    traces: Mapping[str, Trace]
    settings: Mapping[str, Any] = field(default_factory=dict)

    HEAD = (
        "", "trained parameters", "stored bytes", "validation loss", "BLEU", "slot errors",
        "ms per step",
    )  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table under `HEAD`; an en dash for what was not measured."""
        return [
            (
                name,
                f"{result.trained_parameters:,}",
                f"{result.stored_bytes:,}",
                number(result.loss, ".3f"),
                number(result.bleu, ".1f"),
                number(result.slot_error_rate, ".1%"),
                number(1000 * result.seconds_per_step, ".0f"),
            )
            for name, result in self.results.items()
        ]

    @property
    def caption(self) -> str:
        """What the runs have in common: the base (and if its weights are random), task, steps."""
        return caption(self.settings)

    def __str__(self) -> str:
        return as_text(self.HEAD, self.rows(), self.caption)

    def _repr_html_(self) -> str:
        return as_html(self.HEAD, self.rows(), self.caption)


def caption(settings: Mapping[str, Any]) -> str:
    """What is said above a table of runs, from the settings that they have in common."""
    parts = [str(settings[name]) for name in ("base", "task") if name in settings]
    for name, what in (("steps", "steps"), ("batch_size", "pairs per step")):
        parts += [f"{settings[name]} {what}"] if name in settings else []
    parts += [f"seed {settings['seed']}"] if "seed" in settings else []
    return " · ".join(parts)


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


class EndedRun(Protocol):
    """What `Runs.keep` needs of a session."""

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
        return sorted(file.parent.name for file in self.folder.glob(f"*/{TRACE}"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def place(self, name: str) -> Path:
        """The folder for a new run, to give to `TrainingSession(out=...)`.

        Raises `SessionError` for a name that is taken or can't be one of a folder.
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
        return self.folder / name

    def keep(self, name: str, session: EndedRun, result: Result | None = None) -> Run:
        """Keep a run that was made without ``out``: trace, settings, and adapter or model.

        Raises `SessionError` as `place` does, and for a session that has not ended.
        """
        place = self.place(name)
        if session.status not in ("completed", "stopped"):
            raise SessionError(
                f"this session is {session.status}; only one that is completed or stopped is kept"
            )
        from vblora_lab.runs.folder import RunFolder

        folder = RunFolder(place)
        folder.open(session.settings)
        with folder.writing(ADAPTER) as aside:
            session.model.save_pretrained(str(aside))
        with folder.writing(TRACE) as aside:  # last: a folder with a trace is a run
            session.trace.save(aside)
        if result is not None:
            self.note(name, result)
        return self[name]

    def note(self, name: str, result: Result) -> None:
        """Write down what a run that is here came to, in place of what was noted before."""
        from vblora_lab.runs.folder import RunFolder

        with RunFolder(self.folder / name).writing(RESULT) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")

    def __getitem__(self, name: str) -> Run:
        """Read a run. Raises `DataError` where there is none of that name, or it can't be read."""
        if name not in self:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {self.names()}"
            raise DataError(f"no run is called {name!r} in {self.folder}; {hint}")
        folder = self.folder / name
        trace = Trace.load(folder / TRACE)
        result = read_json(folder / RESULT)
        return Run(
            name,
            folder,
            trace,
            read_json(folder / SETTINGS),
            Result(**result) if result else Result.of(trace),
        )

    def compare(self, names: Sequence[str] | None = None) -> Comparison:
        """These runs side by side, or all; the caption tells what they have in common."""
        runs = [self[name] for name in (self.names() if names is None else names)]
        first = runs[0].settings if runs else {}
        return Comparison(
            {run.name: run.result for run in runs},
            {run.name: run.trace for run in runs},
            {k: v for k, v in first.items() if all(run.settings.get(k) == v for run in runs)},
        )

    def __repr__(self) -> str:
        return f"Runs({str(self.folder)!r}): {', '.join(self) or 'none yet'}"

    def _repr_html_(self) -> str:
        return self.compare()._repr_html_() if len(self) else html.escape(repr(self))
