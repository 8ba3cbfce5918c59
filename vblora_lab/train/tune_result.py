"""What a search came to: its trials, the best of them, and Python that trains that one again."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig

from vblora_lab.errors import SessionError
from vblora_lab.planning.code import as_code, as_literal
from vblora_lab.runs.layout import ADAPTER
from vblora_lab.runs.results import caption
from vblora_lab.tables import as_html, as_text, number, readable
from vblora_lab.train.optimizer import LearningRates
from vblora_lab.train.tune_space import LABELS, Method
from vblora_lab.tuner.config import VBLoRAConfig


@dataclass(frozen=True)
class Tried:
    """A trial that has ended.

    Attributes:
        name: "trial-007", also of its run in the folder of the search.
        method: "vblora" or "lora".
        targets: which of the usual choices of modules was adapted.
        config: of VB-LoRA, or of PEFT's LoRA.
        learning_rates: peak rates.
        bytes: of the adapter's weights file, at most.
        loss: on the validation examples after the last step, in nats per completion token; NaN for
            a trial that was cut short or failed.
        last_loss: the last validation loss that is known, also of a trial that was cut short; NaN
            where there is none.
        state: "completed", "cut short", or "failed: " and why.
        folder: of its run; None where none was kept.
    """

    name: str
    method: Method
    targets: str
    config: PeftConfig
    learning_rates: LearningRates
    bytes: int
    loss: float
    last_loss: float
    state: str
    folder: Path | None = None

    @property
    def adapter(self) -> Path | None:
        """The folder to load with `from_pretrained`; None where no run was kept."""
        return None if self.folder is None else self.folder / ADAPTER


@dataclass(frozen=True, eq=False)
class Tuned:
    """The trials of a search; a table in a notebook and in a terminal.

    For the figure: `plots.tune_figure(tuned)`.

    Attributes:
        trials: those that have ended, by number.
        bytes: the budget.
        settings: what they have in common: base, task, steps, batch_size, seed, eval_examples.
    """

    trials: tuple[Tried, ...]
    bytes: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    HEAD = (
        "", "method", "targets", "r", "bank", "topk", "bank rate", "logits rate", "other rate",
        "bytes", "validation loss", "",
    )  # fmt: skip

    @property
    def best(self) -> Tried:
        """The completed trial of the lowest loss; of equal ones the smallest.

        Raises `SessionError` if none has run to its end.
        """
        if not self.front:
            raise SessionError("no trial has run to its end yet, so none is the best")
        return self.front[-1]

    @property
    def front(self) -> tuple[Tried, ...]:
        """The completed trials that no other beats in bytes and in loss, by bytes.

        From one to the next, bytes rise and the loss falls. Of trials that are equal in both, the
        first.
        """
        front: list[Tried] = []
        done = [trial for trial in self.trials if not math.isnan(trial.loss)]
        for trial in sorted(done, key=lambda trial: (trial.bytes, trial.loss)):
            if not front or trial.loss < front[-1].loss:
                front.append(trial)
        return tuple(front)

    @property
    def code(self) -> str:
        """Python that trains the best one again; see `code_of`."""
        return self.code_of(self.best)

    def code_of(self, trial: Tried) -> str:
        """Python that trains a trial again and keeps the run in the folder "best".

        The base and the task are named as they were given, a `Base` or a `Task` by its own name.
        """
        config = trial.config
        made = _lora_code(config) if isinstance(config, LoraConfig) else _code(trial)
        session, where, first = (
            ("MethodSession", "vblora_lab.train.compare", f'    "{LABELS["lora"]}",\n')
            if trial.method == "lora"
            else ("TrainingSession", "vblora_lab", "")
        )
        names = ("steps", "batch_size", "seed", "eval_examples")
        options = "".join(f"    {name}={self.settings[name]!r},\n" for name in names)
        return (
            f"from vblora_lab import LearningRates\nfrom {where} import {session}\n{made}\n"
            f"session = {session}(\n{first}"
            f"    {as_literal(self.settings['base'])},\n"
            "    config,\n"
            f"    {as_literal(self.settings['task'])},\n"
            f"    learning_rates={_rates_code(trial)},\n"
            f'{options}    out="best",\n)\n'
            'if __name__ == "__main__":\n'
            "    trace = session.run()\n"
            '    print(f"validation loss {trace.eval_losses[-1]:.4f} nats per token")\n'
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table under `HEAD`; an en dash for what is not there."""
        return [self._row(trial) for trial in self.trials]

    def to_csv(self) -> str:
        """The trials as CSV: a column for each number, empty where there is none."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(CSV), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: read(trial) for name, read in CSV.items()} for trial in self.trials)
        return text.getvalue()

    def __str__(self) -> str:
        return as_text(self.HEAD, self.rows(), self._caption)

    def _repr_html_(self) -> str:
        return as_html(self.HEAD, self.rows(), self._caption)

    @property
    def _caption(self) -> str:
        common = caption(self.settings)
        return " · ".join(filter(None, [common, f"at most {self.bytes:,} bytes"]))

    def _row(self, trial: Tried) -> tuple[str, ...]:
        mark = "" if trial.state == "completed" else trial.state.partition(":")[0]
        if trial in self.front:
            mark = "best" if trial is self.best else "front"
        return (
            trial.name,
            LABELS[trial.method],
            trial.targets,
            *_settings(trial),
            f"{trial.bytes:,}",
            number(trial.loss, ".4f"),
            mark,
        )


def _settings(trial: Tried) -> tuple[str, ...]:
    """Rank, bank, topk and the three rates; an en dash for what the method doesn't have."""
    config, rates = trial.config, trial.learning_rates
    if not isinstance(config, VBLoRAConfig):
        return (str(getattr(config, "r", "–")), *"––––", f"{rates.other:.1e}")
    bank = f"{config.num_vectors} x {config.vector_length}"
    numbers = (str(config.topk), f"{rates.bank:.1e}", f"{rates.logits:.1e}")
    return (str(config.r), bank, *numbers, "–")


CSV = {
    "trial": lambda t: t.name,
    "method": lambda t: t.method,
    "targets": lambda t: t.targets,
    "target_modules": lambda t: " ".join(sorted(t.config.target_modules)),
    "r": lambda t: t.config.r,
    "num_vectors": lambda t: getattr(t.config, "num_vectors", ""),
    "vector_length": lambda t: getattr(t.config, "vector_length", ""),
    "topk": lambda t: getattr(t.config, "topk", ""),
    "bank_rate": lambda t: t.learning_rates.bank if t.method == "vblora" else "",
    "logits_rate": lambda t: t.learning_rates.logits if t.method == "vblora" else "",
    "other_rate": lambda t: t.learning_rates.other if t.method == "lora" else "",
    "bytes": lambda t: t.bytes,
    "loss": lambda t: "" if math.isnan(t.loss) else t.loss,
    "last_loss": lambda t: "" if math.isnan(t.last_loss) else t.last_loss,
    "state": lambda t: t.state,
}
"""Columns of the file, and how each is read off a trial. Bytes; nats per completion token."""


def progress(trials: Sequence[Tried], name: str) -> str:
    """A line about the trial of this name, which has ended, and the best one so far."""
    trial = next(trial for trial in trials if trial.name == name)
    tuned = Tuned(tuple(trials), 0)
    best = f"; best so far {tuned.best.loss:.4f}, {tuned.best.name}" if tuned.front else ""
    why = trial.state.partition(". ")[0]  # of a failure its first sentence
    ended = why if math.isnan(trial.loss) else f"loss {trial.loss:.4f}"
    what = f"{LABELS[trial.method]} on {trial.targets}"
    return f"{name}: {ended}, {what}, {readable(trial.bytes)}{best}"


def _rates_code(trial: Tried) -> str:
    """The rates of the parameters that the method has."""
    names = ("bank", "logits") if trial.method == "vblora" else ("other",)
    rates = (f"{name}={getattr(trial.learning_rates, name)!r}" for name in names)
    return f"LearningRates({', '.join(rates)})"


def _code(trial: Tried) -> str:
    assert isinstance(trial.config, VBLoRAConfig)
    return as_code(trial.config)


def _lora_code(config: LoraConfig) -> str:
    arguments = "".join(
        f"    {name}={as_literal(getattr(config, name))},\n"
        for name in ("r", "lora_alpha", "target_modules", "task_type")
    )
    return f"from peft import LoraConfig\n\nconfig = LoraConfig(\n{arguments})\n"
