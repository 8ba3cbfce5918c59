"""A session whose training differs from the plain one as a trial says.

What a trial may change, by name:

    freeze           of "choices", "weights", "bank": those that stay as they were drawn
    freeze_at        share of the steps after which choices are frozen
    bank_start       "base weights": the bank starts as pieces of the base's weights
    bank_of          a task: another adapter is trained on it first, and this one takes its bank and
                     keeps it frozen
    start_at_base    the adapter starts with B A = 0
    schedule         of the rates after the warm-up, by transformers' names
    warm_up          share of the steps in which rates rise
    adapter_seed     draws the adapter; else the trial's seed does, which also orders examples
    watch            note what is chosen before and after

For what is frozen see `vblora_lab.freeze`. With choices and weights frozen, what is left to train
is the bank; with choices and bank, the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from vblora_lab import freeze, get_peft_model, start_at_base
from vblora_lab.bases import Base, share_weights
from vblora_lab.data import Task
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.selection import Selection
from vblora_lab.runs.events import Event, Stepped
from vblora_lab.train import LearningRates
from vblora_lab.train.compare import MethodSession
from vblora_lab.train.prompts import encode_all, positions_of
from vblora_lab.tuner.adapted import adapted_layers

if TYPE_CHECKING:
    from pareto_trial import Trial

BANK_SPREAD = 0.02 / 3**0.5  # standard deviation of a bank that starts uniform in [-0.02, 0.02]
_encoded: dict[tuple[int, int], list] = {}


class ChangedSession(MethodSession):
    """A session of one trial.

    Args:
        trial: what to train. base, task: what it names.
        other: gives a task by its name.
        keep: folder for banks that several trials take.

    Attributes:
        validation_rows: of all validation examples of the task.
        first_selection: what was chosen before training, if the trial watches that.
    """

    def __init__(
        self, trial: Trial, base: Base, task: Task, other: Callable[[str], Task], keep: Path
    ) -> None:
        self.trial, self._other, self._keep = trial, other, keep
        self.first_selection: Selection | None = None
        super().__init__(
            trial.name,
            base,
            trial.config(),
            task,
            steps=trial.steps,
            batch_size=trial.batch_size,
            learning_rates=LearningRates(
                bank=trial.rate, logits=trial.rate * trial.ratio, other=trial.rate
            ),
            seed=trial.seed,
            eval_examples=0,
            sample_count=0,
            select_every=0,
            listeners=[self._listen],
        )
        self.validation_rows = self._encode(self.task.validation)

    def _encode(self, examples: Any) -> list:
        key = (id(self.base.tokenizer), id(examples))  # both live as long as their process
        if key not in _encoded:
            rows = encode_all(self.tokenizer, examples, positions_of(self.base.model))
            _encoded[key] = rows
        return _encoded[key]

    def _make_model(self) -> nn.Module:
        change = self.trial.change
        torch.manual_seed(change.get("adapter_seed", self.trial.seed))
        bank = self._first_bank()
        if bank is None:
            model = super()._make_model()
        else:
            model = get_peft_model(
                share_weights(self.base.model),
                self.config,
                bank=bank,
                freeze_bank="bank_of" in change,
            )
        if change.get("start_at_base"):
            start_at_base(model)
        if "freeze" in change:
            freeze(model, *change["freeze"])
        if change.get("watch"):
            self.first_selection = read_selection(model)
        return model

    def _first_bank(self) -> Tensor | None:
        if self.trial.change.get("bank_start") == "base weights":
            return pieces_of_base(self.base.model, self.config, self.trial.seed)
        if "bank_of" in self.trial.change:
            return self._bank_of(self.trial.change["bank_of"])
        return None

    def _bank_of(self, task: str) -> Tensor:
        """The bank of an adapter of another task, which is trained if no trial has done so."""
        first = dataclasses.replace(
            self.trial, task=task, change={}, seed=0, rate=self.trial.change["bank_rate"], ratio=10
        )
        file = self._keep / "banks" / f"{first.key}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.exists():
                session = ChangedSession(first, self.base, self._other(task), self._other, file)
                session.run()
                layer = next(iter(adapted_layers(session.model, "default").values()))
                torch.save(layer.bank("default").detach().cpu(), file)
        bank: Tensor = torch.load(file, weights_only=True)
        return bank

    def _make_trainer(self, folder: str) -> Any:
        trainer = super()._make_trainer(folder)
        change = self.trial.change
        trainer.args.lr_scheduler_type = change.get("schedule", trainer.args.lr_scheduler_type)
        trainer.args.warmup_steps = change.get("warm_up", trainer.args.warmup_steps)
        return trainer

    def _listen(self, event: Event) -> None:
        share = self.trial.change.get("freeze_at")
        if share and isinstance(event, Stepped) and event.step == int(share * self.steps):
            freeze(self.model, "choices")


@torch.no_grad()
def pieces_of_base(model: nn.Module, config: Any, seed: int) -> Tensor:
    """A bank of random pieces of the adapted weights, as widely spread as a random bank.

    Half of the vectors are pieces of rows of W, as the sub-vectors of A are multiplied with its
    inputs, half of columns.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights = [
        model.get_submodule(name).weight.detach().float().cpu()
        for name in names
        if "lm_head" not in name
    ]
    length, pieces = config.vector_length, []
    for i in range(config.num_vectors):
        picked = torch.randint(len(weights), (), generator=generator)
        weight = weights[int(picked)]
        weight = weight if i % 2 else weight.T
        row = torch.randint(len(weight), (), generator=generator)
        tile = torch.randint(weight.shape[1] // length, (), generator=generator)
        piece = weight[int(row), int(tile) * length :][:length]
        pieces.append(piece * (BANK_SPREAD / piece.std().clamp_min(1e-8)))
    return torch.stack(pieces)
