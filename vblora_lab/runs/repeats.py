"""Methods with several seeds each: means, and how far single runs lie from them.

One run of a method says little: another seed draws another adapter and another order of examples.
Reading needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vblora_lab.runs.results import Comparison, Result, caption, in_common
from vblora_lab.tables import as_html, as_text, number


@dataclass(frozen=True, eq=False)
class Repeats:
    """Results by method, one for each seed, and a table of means ± standard deviations.

    Attributes:
        results: at least one for each method.
        settings: what all runs have in common.
    """

    results: Mapping[str, Sequence[Result]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    HEAD = ("", "stored bytes", "validation loss", "BLEU", "slot errors", "runs")

    @classmethod
    def of(cls, comparisons: Iterable[Comparison]) -> Repeats:
        """From comparisons of the same methods that differ in their seed."""
        comparisons = list(comparisons)
        results: dict[str, list[Result]] = {}
        for one in comparisons:
            for name, result in one.results.items():
                results.setdefault(name, []).append(result)
        return cls(results, in_common([one.settings for one in comparisons]))

    def mean(self, method: str, measure: str) -> float:
        """The mean of a field of `Result` over the runs of a method; NaN if it was not measured."""
        return float(np.mean(self.values(method, measure)))

    def deviation(self, method: str, measure: str) -> float:
        """The standard deviation of single runs, with n - 1 degrees of freedom; NaN for one run."""
        values = self.values(method, measure)
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def error(self, method: str, measure: str) -> float:
        """The standard error of `mean`: the deviation divided by the root of the number of runs."""
        return self.deviation(method, measure) / math.sqrt(len(self.results[method]))

    def values(self, method: str, measure: str) -> list[float]:
        """A field of `Result`, for each run of a method."""
        return [float(getattr(result, measure)) for result in self.results[method]]

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table under `HEAD`."""
        return [
            (
                name,
                f"{results[0].stored_bytes:,}",
                self._spread(name, "loss", ".3f"),
                self._spread(name, "bleu", ".1f"),
                self._spread(name, "slot_error_rate", ".1%"),
                str(len(results)),
            )
            for name, results in self.results.items()
        ]

    def _spread(self, method: str, measure: str, form: str) -> str:
        mean = number(self.mean(method, measure), form)
        deviation = self.deviation(method, measure)
        return mean if math.isnan(deviation) else f"{mean} ± {deviation:{form}}"

    def __str__(self) -> str:
        return as_text(self.HEAD, self.rows(), caption(self.settings))

    def _repr_html_(self) -> str:
        return as_html(self.HEAD, self.rows(), caption(self.settings))
