"""Captured steps for the HF Trainer and those made from it: a CUDA graph per batch shape."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Trainer

from vblora_lab.errors import ConfigError
from vblora_lab.speed.captured import Batch, CapturedStep

logger = logging.getLogger(__name__)

PAD_TO = (
    64  # tokens: a batch's length is rounded up to a multiple, so that few lengths are captured
)
AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def capture(trainer: AnyTrainer, pad_to: int | None = PAD_TO) -> AnyTrainer:
    """Let a Trainer capture its steps: `capture(Trainer(...)).train()`.

    Forward and backward pass become one CUDA graph for each batch shape, which launches all their
    kernels at once. What can't be captured stays eager, and the log says why: on a CPU, with
    several GPUs, with fp16, or where the loss asks the device for a value in every step (as TRL's
    metrics do; the line names the place).

    Args:
        trainer: a Trainer of transformers, or of a class made from it, as TRL has. It keeps its
            class's name and methods; its `training_step` is captured.
        pad_to: batches are padded to a multiple of so many tokens, if the trainer's collator can do
            so (`pad_to_multiple_of`) and wasn't told another number. None to leave it as it is.

    Returns:
        The trainer.

    Raises:
        ConfigError: it is no Trainer, or pad_to isn't positive; nothing was changed.
    """
    if not isinstance(trainer, Trainer):
        raise ConfigError(
            "trainer: must be a transformers.Trainer or made from one, not "
            f"{type(trainer).__name__}."
        )
    if pad_to is not None and pad_to < 1:
        raise ConfigError(f"pad_to={pad_to!r}: must be a positive number of tokens, or None.")
    if isinstance(trainer, Capturing):
        return trainer
    plain = type(trainer)
    trainer.__class__ = type(plain.__name__, (Capturing, plain), {"__module__": plain.__module__})
    collator: Any = trainer.data_collator
    if pad_to is not None and getattr(collator, "pad_to_multiple_of", 0) is None:
        collator.pad_to_multiple_of = pad_to
    return trainer


class Capturing:
    """Before a Trainer among a class's parents: its forward and backward pass are captured.

    The optimizer, its schedule, clipping and logging stay with the Trainer. `_prepare_inputs` is
    private there, and the one way to move a batch to the device as it does.
    """

    _captured: CapturedStep | None = None
    _told: str | None = None

    def train(self, *args: Any, **more: Any) -> Any:
        """Train as a Trainer does. Its graphs, which hold memory, are dropped however it ends."""
        try:
            return super().train(*args, **more)  # type: ignore[misc]
        finally:
            self._captured = None

    def training_step(
        self: Any,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One batch, as the Trainer's own does it."""
        eager = super().training_step  # type: ignore[misc]
        reason = self._why_eager(inputs)
        if reason is not None:
            if reason != self._told:
                logger.info("training steps stay eager: %s", reason)
                self._told = reason
            return eager(model, inputs, num_items_in_batch)

        def step(batch: Batch) -> Tensor:
            parts = dict(batch)
            return eager(model, parts, parts.pop("num_items_in_batch", None))

        if self._captured is None:
            self._captured = CapturedStep(step, model)
        for part in (
            model,
            self.optimizer,
        ):  # the Trainer's own step sets modes, but a graph doesn't
            if not getattr(part, "training", False) and callable(getattr(part, "train", None)):
                part.train()
        batch: dict[str, Tensor] = self._prepare_inputs(inputs)
        if num_items_in_batch is not None:
            count = torch.as_tensor(num_items_in_batch, device=self.args.device)
            batch = {**batch, "num_items_in_batch": count}
        # By which the loss is divided; fewer at the end of an epoch.
        return self._captured(batch, getattr(self, "current_gradient_accumulation_steps", 1))

    def _why_eager(self: Any, inputs: dict[str, Any]) -> str | None:
        arguments = self.args
        if arguments.n_gpu > 1 or arguments.world_size > 1:
            return "several GPUs train together"
        if arguments.fp16:
            return "float16 needs a loss scale that changes"
        if arguments.torch_compile:
            return "the model is compiled, which captures it already"
        if arguments.torch_empty_cache_steps is not None:
            return "torch_empty_cache_steps frees memory between forward and backward pass"
        if str(getattr(arguments.optim, "value", arguments.optim)) in ("lomo", "adalomo"):
            return f"the optimizer {arguments.optim} steps within the backward pass"
        if getattr(arguments, "activation_offloading", False):
            return "activations are offloaded"
        if not all(isinstance(value, Tensor) for value in inputs.values()):
            return "the batch holds other things than tensors"
        return None


class CapturingTrainer(Capturing, Trainer):
    """A Trainer whose forward and backward pass are a captured step where that is safe."""
