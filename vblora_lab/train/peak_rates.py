"""The peak learning rates of a run, which may change while it goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields

from vblora_lab.errors import DataError
from vblora_lab.runs.layout import RATES
from vblora_lab.train.optimizer import LearningRates


class PeakRates:
    """The peak rates of a run: those it has, those it is to take next, and those noted earlier.

    A run that is resumed, even after it was killed, changes its rates at the same steps again.

    Attributes:
        now: the newest, whether or not the optimizer has taken them yet.
    """

    def __init__(self, rates: LearningRates) -> None:
        self.now = rates
        self._wanted: deque[LearningRates] = deque(maxlen=1)  # from thread to thread
        self._noted: dict[int, LearningRates] = {}

    def ask_for(self, rates: LearningRates) -> None:
        """Let these hold from the next step on, in place of any noted for later; in any thread."""
        self.now = rates
        self._noted = {}
        self._wanted.append(rates)

    def asked_for(self) -> LearningRates | None:
        """What was asked for since the last call, if anything was."""
        return self._wanted.pop() if self._wanted else None

    def recall(self, noted: Mapping[int, Mapping[str, float]], first_step: int) -> None:
        """Take up what an earlier part of the run noted: rates by the step after which they hold.

        first_step: the step of the checkpoint; its optimizer has rates that were noted earlier.

        Raises `DataError` for rates of other names.
        """
        names = {field.name for field in fields(LearningRates)}
        for step, rates in noted.items():
            if rates.keys() != names:
                raise DataError(
                    f"{RATES} has rates for {sorted(rates)} after step {step}; "
                    f"expected: {sorted(names)}"
                )
            if step >= first_step:
                self._noted[step] = LearningRates(**rates)
            else:
                self.now = LearningRates(**rates)

    def recalled(self, step: int) -> LearningRates | None:
        """What was noted to hold after a step, if anything was; it is `now` then."""
        rates = self._noted.get(step)
        if rates is not None:
            self.now = rates
        return rates
