"""Protection against a loss that goes wrong and a batch that is too large."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vblora_lab.errors import DivergedError
from vblora_lab.train.processes import sum_of_processes
from vblora_lab.train.prompts import IGNORED
from vblora_lab.tuner.sharded import is_cut, part

EXPLODED = 3.0
"""A loss has exploded that is this many times the first, and above that of a uniform guess."""

Batch = Mapping[str, Tensor]


class Guard:
    """Watches each step and keeps the last good state of what is trained.

    A state is good if its loss is finite and has not exploded. Keeping it takes the memory of a
    second copy of the trained parameters, which is written anew in each step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parts: list[Tensor] = []  # of what is trained, as this process holds it
        self._good: list[Tensor] = []  # empty until a step was good
        config = getattr(model, "config", None)
        self._guess = math.log(getattr(config, "vocab_size", None) or 1)
        self._first: float | None = None

    @torch.no_grad()
    def check(self, step: int, loss: Tensor, batch: Batch, rates: Mapping[str, float]) -> None:
        """Judge the loss and gradients of a step, before the optimizer moves anything.

        Args:
            step: number of this step, from 1.
            loss: scalar.
            batch: gave the loss; read only if that is bad.
            rates: learning rate of each optimizer group, for the message.

        Raises:
            DivergedError: names step and likely cause; the parameters are the last good ones.
        """
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._parts = [part(p).detach() for p in trained]
        gradients = [part(p.grad) for p in trained if p.grad is not None]
        # torch's functions over lists of tensors, private in name: few kernels for many parameters.
        norms = torch._foreach_norm(gradients) if gradients else [loss]
        total = torch.stack(list(norms)).float().sum()
        if any(map(is_cut, trained)):
            total = sum_of_processes(total)  # all must come to the same judgement
        # One transfer from the device, whatever the number of parameters.
        value, norm = torch.stack([loss.float(), total]).tolist()
        if self._first is None:
            self._first = value
        if not math.isfinite(value):
            problem = f"the loss of step {step} is {value}"
        elif value > max(EXPLODED * self._first, self._guess):
            problem = f"the loss exploded to {value:.1f} at step {step}, from {self._first:.1f}"
        else:
            self._keep()
            if math.isfinite(norm):
                return
            problem = f"the gradients of step {step} are not finite"
        cause = self._likely_cause(batch, rates)
        if not self._good:
            raise DivergedError(f"{problem}. {cause} No step was taken.")
        torch._foreach_copy_(self._parts, self._good)
        raise DivergedError(f"{problem}. {cause} The model holds the last state that was good.")

    def _keep(self) -> None:
        if self._good:
            torch._foreach_copy_(self._good, self._parts)
        else:
            self._good = [held.clone() for held in self._parts]

    def _likely_cause(self, batch: Batch, rates: Mapping[str, float]) -> str:
        labels = batch.get("labels")
        if labels is not None and not bool((labels != IGNORED).any()):
            return "No token of the batch has a label, so there is nothing to take a mean of."
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad and not bool(parameter.isfinite().all()):
                return f"The base model's own {name} holds NaN or infinity: load it anew."
        if any(p.dtype == torch.float16 for p in self._model.parameters()):
            return "float16 overflows beyond 65504: use bfloat16 or float32."
        given = ", ".join(f"{name}={rate:.3g}" for name, rate in rates.items())
        return f"Likely the learning rates are too high ({given}): try a tenth."


def largest_that_fits(attempt: Callable[[Batch], Any], batch: Batch) -> tuple[int, int] | None:
    """Rows and length of the largest part of a batch that ``attempt`` has memory for.

    Tries half the rows, a quarter and so on, then one row of half the length and so on; None if
    nothing fits.
    """
    rows, length = batch["input_ids"].shape
    while rows * length > 1:
        rows, length = (rows // 2, length) if rows > 1 else (1, length // 2)
        gc.collect()  # exceptions hold on to frames, and those to activations
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt({name: tensor[:rows, :length] for name, tensor in batch.items()})
        except torch.cuda.OutOfMemoryError:
            continue
        return rows, length
    return None
