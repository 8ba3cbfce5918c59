"""What a panel has heard of a run, and the numbers that it makes of it. No widget."""

from __future__ import annotations

from dataclasses import dataclass, field

from vblora_lab.inspection.selection import Selection
from vblora_lab.runs.events import Evaluated, Sample, Started, Stepped
from vblora_lab.tables import readable
from vblora_lab.train.session import TrainingSession
from vblora_lab.widgets.readout import NOTHING, Numbers, duration

TILES = (
    *("loss", "validation", "tokens / s", "time left"),
    *("trained", "stored", "sub-vectors", "peak memory"),
)


@dataclass
class Heard:
    """What a session said: the latest of each kind, and what is not on the screen yet."""

    started: Started | None = None
    last_step: Stepped | None = None
    evaluation: Evaluated | None = None
    samples_before: tuple[Sample, ...] = ()
    unseen_steps: list[Stepped] = field(default_factory=list)
    unseen_selection: Selection | None = None

    def numbers(self, goes_on: bool) -> Numbers:
        """The tiles: name -> (number, small print). goes_on: whether the run isn't over."""
        return dict.fromkeys(TILES, (NOTHING, "")) | {
            **self._of_training(goes_on),
            **self._of_adapter(),
        }

    def _of_training(self, goes_on: bool) -> Numbers:
        numbers: Numbers = {}
        if self.last_step is not None:
            step = self.last_step
            numbers["loss"] = f"{step.loss:.3f}", "nats per token"
            speed = f"{step.steps_per_second:.1f} steps/s"
            numbers["tokens / s"] = f"{step.tokens_per_second:,.0f}", speed
            numbers["time left"] = (
                duration(step.eta_seconds) if goes_on else NOTHING,
                f"{duration(step.seconds)} {'so far' if goes_on else 'in all'}",
            )
            if step.peak_memory_bytes:
                numbers["peak memory"] = readable(step.peak_memory_bytes), "so far"
        if self.evaluation is not None:
            at = f"at step {self.evaluation.step}"
            numbers["validation"] = f"{self.evaluation.eval_loss:.3f}", at
        return numbers

    def _of_adapter(self) -> Numbers:
        started = self.started
        if started is None:
            return {}
        each = f"{started.topk} of {started.num_vectors} each"
        return {
            "trained": (f"{started.trained_parameters:,}", "parameters"),
            "sub-vectors": (f"{len(started.sub_vectors):,}", each),
            "stored": (
                readable(started.stored_bytes),
                f"LoRA: {readable(started.lora_stored_bytes)}",
            ),
        }


def settings_of(session: TrainingSession) -> dict[str, str]:
    """What a session trains, in words."""
    config = session.config
    targets = config.target_modules
    return {
        "bank": f"{config.num_vectors} vectors of {config.vector_length}",
        "r, topk": f"{config.r}, {config.topk}",
        "targets": targets if isinstance(targets, str) else ", ".join(sorted(targets or ())),
        "steps": f"{session.steps} of {session.batch_size} pairs",
        "seed": str(session.seed),
    }
