"""The bench: changes to a live model, measured, and taken back. It knows no widget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from vblora_lab.bases import Base
from vblora_lab.data import Task
from vblora_lab.errors import SessionError
from vblora_lab.inspection.counterfactual import Counterfactual
from vblora_lab.train.probe import Outcome, Probe
from vblora_lab.train.session import TrainingSession

Evaluate = Callable[[], Outcome | tuple[float, str]] | TrainingSession | tuple[Base, Task]

CHANGES = ("swap", "reweight", "force", "switch_off", "undo", "restore")


class Bench:
    """Changes to a live model that are tried and measured.

    Args:
        model: with the adapter.
        adapter_name: which adapter.
        evaluate: a function without arguments that returns an `Outcome` (or a loss and a text), or
            a `TrainingSession`, or a `Base` and a `Task` to make a `Probe` of.
        session: that trains the model, if one does; nothing is changed while it runs.
        changed: called after each change.
        show: gets the state as plain data, whenever it is another.

    Attributes:
        what_if: the changes that are in force.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter_name: str,
        evaluate: Any,
        *,
        session: TrainingSession | None,
        changed: Callable[[], None],
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self._evaluate = _as_function(model, evaluate)
        self._session, self._changed, self._show = session, changed, show
        self._state: dict[str, Any] = {}
        self._without: Outcome | None = None  # measured without any change
        self.what_if = Counterfactual(model, adapter_name)
        self.show()

    def try_change(self, kind: str, **arguments: Any) -> tuple[Outcome, Outcome]:
        """Change the model and measure; see `BankHeatmap.try_change`."""
        status = getattr(self._session, "status", "")
        if status in ("running", "paused"):  # a paused one would train on with the change
            raise SessionError(
                f"the session is {status}, and would train on with the change; wait for its end, "
                "or stop() it, before you change it."
            )
        if kind not in CHANGES:
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(CHANGES)}.")
        self.show(busy=True)
        try:
            with self.what_if.restored_on_error():
                if self._without is None or not self.what_if.changes:
                    with self.what_if.lifted():  # anew: the model may have been trained since
                        self._without = self._evaluate()
                getattr(self.what_if, kind)(**arguments)
                after = self._evaluate() if self.what_if.changes else self._without
        except BaseException as error:
            self.show(error=str(error) or type(error).__name__)
            raise
        self._changed()
        self.show(outcomes=(self._without, after))
        return self._without, after

    def show(
        self,
        *,
        busy: bool = False,
        error: str = "",
        outcomes: tuple[Outcome, Outcome] | None = None,
    ) -> None:
        """Show the state: what is in force, what was measured last, what went wrong."""
        state = self._state | {"busy": busy, "error": error, "changes": list(self.what_if.changes)}
        if outcomes is not None:
            state |= {
                name: {
                    "loss": outcome.loss, "prompt": outcome.prompt,
                    "text": outcome.text, "mistakes": list(outcome.mistakes),
                }
                for name, outcome in zip(("before", "after"), outcomes, strict=True)
            }  # fmt: skip
        self._state = state
        self._show(state)


def _as_function(model: nn.Module, evaluate: Any) -> Callable[[], Outcome]:
    if isinstance(evaluate, TrainingSession):
        return Probe.of(evaluate)
    if isinstance(evaluate, tuple) and len(evaluate) == 2:
        base, task = evaluate
        return Probe(cast(Any, model), base.tokenizer, task)
    if not callable(evaluate):
        raise TypeError(
            f"evaluate is of type {type(evaluate).__name__}: must be a function without arguments, "
            "a TrainingSession, or a Base and a Task."
        )

    def call() -> Outcome:
        result = evaluate()
        if isinstance(result, Outcome):
            return result
        loss, text = result
        return Outcome(float(loss), text=str(text))

    return call
