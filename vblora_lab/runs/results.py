"""What runs came to, and tables of it. Reading needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vblora_lab.errors import DataError
from vblora_lab.runs.fields import WrongField, built
from vblora_lab.runs.layout import read_json
from vblora_lab.runs.trace import Trace
from vblora_lab.tables import as_html, as_text, number


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
        recorded: dict[str, Any] = {
            "trained_parameters": trace.trained_parameters,
            "stored_bytes": trace.stored_bytes,
            "seconds_per_step": trace.seconds_per_step,
        }
        if len(trace.steps) and trace.steps[-1] in trace.eval_steps:  # else it is of an older state
            recorded["loss"] = float(trace.eval_losses[-1])
        return cls(**(recorded | measured))

    @classmethod
    def read(cls, path: Path) -> Result | None:
        """What was noted in a file; None where there is none.

        Raises `DataError`, with the path, for what is no result.
        """
        facts = read_json(path)
        try:
            return built(cls, facts) if facts else None
        except WrongField as error:
            raise DataError(f"{path} can't be read as a result: {error}") from error


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


def in_common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all of these runs were made with."""
    first, *others = settings or [{}]
    return {
        name: value
        for name, value in first.items()
        if all(other.get(name) == value for other in others)
    }
