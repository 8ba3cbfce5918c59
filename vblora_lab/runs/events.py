"""What a training session says while it runs.

To follow a run, add a listener: a widget, a progress bar, the trace recorder and a test are
all functions of one event, called in the training thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # numpy stays out of what only hears events, such as the command line
    from vblora_lab.inspection.selection import Selection, SubVectors

Reason = Literal["completed", "stopped", "failed"]


@dataclass(frozen=True)
class Sample:
    """A generated text beside what was asked for; ``slot_errors`` as `data.metrics.slot_errors`."""

    mr: str
    reference: str
    text: str
    slot_errors: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """The first event: what is about to be trained.

    stored_bytes: of the tensors to store, for VB-LoRA with the top-k weights alone.
    lora_stored_bytes: of a LoRA of the same rank. step: 0, or the step of the checkpoint from
    which a run goes on. base: what the base model is called wherever it is shown (`Base.label`),
    with a word if its weights are random.
    """

    total_steps: int
    sub_vectors: SubVectors
    num_vectors: int
    topk: int
    trained_parameters: int
    stored_bytes: int
    lora_stored_bytes: int
    step: int = 0
    base: str = ""


@dataclass(frozen=True)
class Stepped:
    """One optimizer step is done; speeds are means since the first step, without the pauses.

    peak_memory_bytes: the most so far, by tensors on the CUDA device in this run, or else by the
    process.
    """

    step: int
    total_steps: int
    loss: float
    learning_rates: dict[str, float]
    tokens_per_second: float
    steps_per_second: float
    eta_seconds: float
    seconds: float
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Selected:
    """Which bank vectors every sub-vector chooses after ``step`` steps."""

    step: int
    selection: Selection


@dataclass(frozen=True)
class Evaluated:
    """Mean cross-entropy per completion token (nats) on validation examples."""

    step: int
    eval_loss: float


@dataclass(frozen=True)
class Sampled:
    """Greedy generations for the same few validation MRs, before, during and after training."""

    step: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Paused:
    """Training waits after this step until it is resumed."""

    step: int


@dataclass(frozen=True)
class Resumed:
    """Training goes on after a pause, if only for one step."""

    step: int


@dataclass(frozen=True)
class Saved:
    """A checkpoint, or the final adapter, lies whole in ``folder``."""

    step: int
    folder: str


@dataclass(frozen=True)
class SaveFailed:
    """Something could not be written; ``problem`` says what. Training goes on in memory."""

    step: int
    problem: str


@dataclass(frozen=True)
class Finished:
    """The last event, however the run ended."""

    reason: Reason
    step: int
    seconds: float
    error: BaseException | None = None


@dataclass(frozen=True)
class Working:
    """Something goes on that takes longer than a step: ``done`` of ``total`` (0: unknown).

    It says what a person waits for now, so traces leave it out. ``step``: the last that is done.
    ``unit``: what is counted.
    """

    step: int
    what: str
    done: int = 0
    total: int = 0
    unit: str = "examples"

    def __str__(self) -> str:
        if self.total:
            return f"{self.what}, {self.done:,} of {self.total:,} {self.unit}"
        return f"{self.what}, {self.done:,} {self.unit}" if self.done else self.what


Event = (
    Started
    | Stepped
    | Selected
    | Evaluated
    | Sampled
    | Paused
    | Resumed
    | Saved
    | SaveFailed
    | Finished
    | Working
)
Listener = Callable[[Event], None]
