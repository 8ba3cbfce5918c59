"""A training run as plain arrays: what was on screen, to keep, to plot and to compare."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from vblora_lab.errors import DataError
from vblora_lab.selection import Selection, SubVectors
from vblora_lab.train.events import (
    Evaluated,
    Event,
    Finished,
    Sample,
    Sampled,
    Selected,
    Started,
    Stepped,
)


@dataclass(frozen=True, eq=False)
class Trace:
    """All that a run said. Losses in nats per completion token, sizes in bytes.

    steps, losses: (n,), one per optimizer step. eval_steps, eval_losses: (m,). selections: pairs of
    a step and the `Selection` after it. reason: "" while the run goes on.
    """

    steps: np.ndarray
    losses: np.ndarray
    eval_steps: np.ndarray
    eval_losses: np.ndarray
    selections: tuple[tuple[int, Selection], ...] = ()
    samples_before: tuple[Sample, ...] = ()
    samples_after: tuple[Sample, ...] = ()
    trained_parameters: int = 0
    stored_bytes: int = 0
    lora_stored_bytes: int = 0
    seconds: float = 0.0
    reason: str = ""

    def save(self, path: str | Path) -> Path:
        """Write one compressed .npz file (arrays and JSON text, nothing pickled).

        Indices and weights take (k, k) numbers per sub-vector and step, at the precision of
        float16 for the weights.
        """
        path = Path(path)
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _PLAIN}
        facts["samples_before"] = [asdict(sample) for sample in self.samples_before]
        facts["samples_after"] = [asdict(sample) for sample in self.samples_after]
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _ARRAYS}
        if self.selections:
            first = self.selections[0][1]
            facts["num_vectors"] = first.num_vectors
            arrays |= {f"at_{f.name}": getattr(first.sub_vectors, f.name) for f in _COORDINATES}
            arrays["at_modules"] = np.array(first.sub_vectors.modules)
            small = np.uint16 if first.num_vectors <= 2**16 else np.uint32
            arrays["select_steps"] = np.array([step for step, _ in self.selections], np.int32)
            arrays["indices"] = np.stack([s.indices for _, s in self.selections]).astype(small)
            arrays["weights"] = np.stack([s.weights for _, s in self.selections]).astype(np.float16)
        with open(path, "wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a file that `save` wrote; raises `DataError` for any other."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            facts = json.loads(str(arrays.pop("facts")))
            return cls(
                **{name: arrays[name] for name in _ARRAYS},
                **{name: facts[name] for name in _PLAIN},
                selections=_selections(arrays, facts.get("num_vectors", 0)),
                samples_before=_samples(facts["samples_before"]),
                samples_after=_samples(facts["samples_after"]),
            )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is not a trace that Trace.save wrote: {error}") from error


_ARRAYS = ("steps", "losses", "eval_steps", "eval_losses")
_PLAIN = ("trained_parameters", "stored_bytes", "lora_stored_bytes", "seconds", "reason")
_COORDINATES = tuple(f for f in fields(SubVectors) if f.name != "modules")


def _selections(
    arrays: dict[str, np.ndarray], num_vectors: int
) -> tuple[tuple[int, Selection], ...]:
    if "select_steps" not in arrays:
        return ()
    where = SubVectors(
        modules=tuple(str(name) for name in arrays["at_modules"]),
        **{f.name: arrays[f"at_{f.name}"] for f in _COORDINATES},
    )
    return tuple(
        (int(step), Selection(where, num_vectors, i.astype(np.int32), w.astype(np.float32)))
        for step, i, w in zip(
            arrays["select_steps"], arrays["indices"], arrays["weights"], strict=True
        )
    )


def _samples(rows: list[dict[str, object]]) -> tuple[Sample, ...]:
    return tuple(
        Sample(**{**row, "slot_errors": tuple(row["slot_errors"])})  # type: ignore[arg-type]
        for row in rows
    )


@dataclass
class TraceRecorder:
    """A listener that gathers events; `trace` is the run so far, at any moment."""

    _steps: list[int] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _evals: list[tuple[int, float]] = field(default_factory=list)
    _selections: list[tuple[int, Selection]] = field(default_factory=list)
    _samples: list[tuple[Sample, ...]] = field(default_factory=list)
    _started: Started | None = None
    _seconds: float = 0.0
    _reason: str = ""

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._started = event
            case Stepped():
                self._steps.append(event.step)
                self._losses.append(event.loss)
                self._seconds = event.seconds
            case Selected():
                self._selections.append((event.step, event.selection))
            case Evaluated():
                self._evals.append((event.step, event.eval_loss))
            case Sampled():
                self._samples.append(event.samples)
            case Finished():
                self._seconds, self._reason = event.seconds, event.reason

    @property
    def trace(self) -> Trace:
        count = len(self._losses)  # read once: the training thread may be appending
        evals = list(self._evals)
        samples = list(self._samples)
        return Trace(
            steps=np.array(self._steps[:count], np.int32),
            losses=np.array(self._losses[:count], np.float32),
            eval_steps=np.array([step for step, _ in evals], np.int32),
            eval_losses=np.array([loss for _, loss in evals], np.float32),
            selections=tuple(self._selections),
            samples_before=samples[0] if samples else (),
            samples_after=samples[-1] if len(samples) > 1 else (),
            trained_parameters=self._started.trained_parameters if self._started else 0,
            stored_bytes=self._started.stored_bytes if self._started else 0,
            lora_stored_bytes=self._started.lora_stored_bytes if self._started else 0,
            seconds=self._seconds,
            reason=self._reason,
        )
