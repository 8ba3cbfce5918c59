"""A run in a terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from vblora_lab.runs.events import Evaluated, Event, Finished, SaveFailed, Started, Stepped, Working


class ProgressBar:
    """A listener that draws a progress bar with the loss, or what is done meanwhile, on stderr."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}
        self._doing = ""

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                about = f"VB-LoRA, {event.base}" if event.base else "VB-LoRA"
                self._bar = tqdm(
                    total=event.total_steps, initial=event.step, unit="step", desc=about
                )
            case Stepped() if self._bar is not None:
                self._doing = ""
                self._shown["loss"] = f"{event.loss:.3f}"
                self._shown["tokens_per_s"] = f"{event.tokens_per_second:,.0f}"
                self._bar.set_postfix(self._shown, refresh=False)
                self._bar.update(event.step - self._bar.n)
            case Evaluated() if self._bar is not None:
                self._shown["eval_loss"] = f"{event.eval_loss:.3f}"
                self._bar.set_postfix(self._shown)
            case Working() if self._bar is not None and event.what != self._doing:
                self._doing = event.what
                self._bar.set_postfix_str(event.what)
            case SaveFailed() if self._bar is not None:
                self._bar.write(f"Not saved, training goes on: {event.problem}")
            case Finished() if self._bar is not None:
                self._bar.close()
