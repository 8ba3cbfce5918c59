"""The HF Trainer with captured steps: a CUDA graph per batch shape, where that is safe."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from vblora_lab.speed.captured import Batch, CapturedStep

logger = logging.getLogger(__name__)


class CapturingTrainer(Trainer):
    """A Trainer whose forward and backward pass are a captured step where that is safe.

    The optimizer, its schedule, clipping and logging stay with the Trainer. `_prepare_inputs` is
    private there, and the one way to move a batch to the device as it does.
    """

    _captured: CapturedStep | None = None
    _told: str | None = None

    def train(self, *args: Any, **more: Any) -> Any:
        """Train as a Trainer does. Its graphs, which hold memory, are dropped however it ends."""
        try:
            return super().train(*args, **more)
        finally:
            self._captured = None

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        reason = self._why_eager(inputs)
        if reason is not None:
            if reason != self._told:
                logger.info("training steps stay eager: %s", reason)
                self._told = reason
            return super().training_step(model, inputs, num_items_in_batch)
        eager = super().training_step

        def step(batch: Batch) -> Tensor:
            parts = dict(batch)
            return eager(model, parts, parts.pop("num_items_in_batch", None))

        if self._captured is None:
            self._captured = CapturedStep(step, model)
        if not model.training:  # the Trainer's own step sets the mode, but a graph doesn't
            model.train()
        batch: dict[str, Tensor] = self._prepare_inputs(inputs)
        if num_items_in_batch is not None:
            count = torch.as_tensor(num_items_in_batch, device=self.args.device)
            batch = {**batch, "num_items_in_batch": count}
        return self._captured(batch)

    def _why_eager(self, inputs: dict[str, Any]) -> str | None:
        arguments = self.args
        if arguments.n_gpu > 1 or arguments.world_size > 1:
            return "several GPUs train together"
        if arguments.gradient_accumulation_steps > 1:
            return "gradients are accumulated"
        if arguments.fp16:
            return "float16 needs a loss scale that changes"
        if arguments.torch_compile:
            return "the model is compiled, which captures it already"
        if not all(isinstance(value, Tensor) for value in inputs.values()):
            return "the batch holds other things than tensors"
        return None
