"""A training run as plain data: all that it said, to keep, plot, replay and compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from vblora_lab.inspection.selection import Selection
from vblora_lab.runs.events import (
    Evaluated,
    Event,
    Finished,
    Sample,
    Sampled,
    Selected,
    Started,
    Stepped,
    Working,
)
from vblora_lab.runs.trace_file import read_events, write_events

Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True, eq=False)
class Trace:
    """All that a run said but `Working`, and the arrays in it. Losses in nats per completion token.

    Attributes:
        events: as the listeners got them; give them to a listener to replay the run.
    """

    events: tuple[Event, ...] = ()

    @cached_property
    def steps(self) -> np.ndarray:
        """(n,) int32, the optimizer steps."""
        return np.array([event.step for event in self._of(Stepped)], np.int32)

    @cached_property
    def losses(self) -> np.ndarray:
        """(n,) float32, the loss of each step's batch."""
        return np.array([event.loss for event in self._of(Stepped)], np.float32)

    @cached_property
    def eval_steps(self) -> np.ndarray:
        """(m,) int32, the steps after which validation examples were evaluated."""
        return np.array([event.step for event in self._of(Evaluated)], np.int32)

    @cached_property
    def eval_losses(self) -> np.ndarray:
        """(m,) float32, the mean loss over the validation examples."""
        return np.array([event.eval_loss for event in self._of(Evaluated)], np.float32)

    @cached_property
    def selections(self) -> tuple[tuple[int, Selection], ...]:
        """Pairs of a step and the `Selection` after it."""
        return tuple((event.step, event.selection) for event in self._of(Selected))

    @property
    def samples_before(self) -> tuple[Sample, ...]:
        """What the model wrote first; empty if nothing was written."""
        return next((event.samples for event in self._of(Sampled)), ())

    @property
    def samples_after(self) -> tuple[Sample, ...]:
        """What the model wrote last; empty if it wrote only once."""
        sampled = self._of(Sampled)
        return sampled[-1].samples if len(sampled) > 1 else ()

    @property
    def started(self) -> Started | None:
        """The first event: sizes of what was trained."""
        return next(iter(self._of(Started)), None)

    @property
    def base(self) -> str:
        """What the base model is called, and whether its weights are random; "" if not recorded."""
        return self.started.base if self.started else ""

    @property
    def trained_parameters(self) -> int:
        return self.started.trained_parameters if self.started else 0

    @property
    def stored_bytes(self) -> int:
        return self.started.stored_bytes if self.started else 0

    @property
    def lora_stored_bytes(self) -> int:
        return self.started.lora_stored_bytes if self.started else 0

    @property
    def seconds(self) -> float:
        """Since the (last) start of the run, up to its last event with a time."""
        times = [e.seconds for e in self.events if isinstance(e, Stepped | Finished)]
        return times[-1] if times else 0.0

    @cached_property
    def seconds_per_step(self) -> float:
        """The median time from one step to the next; NaN for fewer than two steps."""
        between = np.diff([event.seconds for event in self._of(Stepped)])
        return float(np.median(between)) if len(between) else float("nan")

    @property
    def reason(self) -> str:
        """How the run ended: "completed", "stopped" or "failed"; "" while it goes on."""
        last = self.events[-1] if self.events else None
        return last.reason if isinstance(last, Finished) else ""

    def save(self, path: str | Path) -> Path:
        """Write the file that `TraceWriter` writes; weights are kept as float16.

        Raises `OSError` where that is impossible.
        """
        write_events(path, self.events)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace, up to its last whole step if it is damaged (`read_events`)."""
        return cls(read_events(path))

    def _of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]


class TraceRecorder:
    """A listener that gathers events; `trace` is the run so far, at any moment.

    events: those of an earlier part of the run, for one that goes on.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events: list[Event] = list(events)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Working):
            self._events.append(event)

    @property
    def trace(self) -> Trace:
        return Trace(tuple(self._events))
