"""A training step as one CUDA graph: forward, backward and optimizer in a single launch.

A small model on a large GPU spends its step waiting for Python to launch the next kernel. A CUDA
graph records the kernels of one step and replays them all at once. What it replays reads and
writes the very memory that it was recorded with: the batch is copied into it, shapes are fixed,
and nothing in the step may ask the device for a value.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

WARM_UP = 3  # eager steps on the side stream, which let libraries allocate what they keep


def why_not(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str | None:
    """Why steps of this model can't be captured, in a sentence, or None if they can be tried."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return "nothing is trained"
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return "the model isn't on one CUDA device"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "several processes train together"
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing is on"
    if optimizer is not None and not all(g.get("capturable") for g in optimizer.param_groups):
        return "the optimizer was not made with capturable=True"
    return None


class CapturedStep:
    """Training steps of one model and optimizer: captured where that is safe, else eager.

    Args:
        model: returns an object with a `loss` when it is called with a batch.
        optimizer: made with capturable=True, or the steps stay eager. Learning rates that are to
            change must be tensors on the device (`lr=torch.tensor(1e-3, device="cuda")`).
        autocast: dtype of autocast on CUDA, None for none.

    Attributes:
        reason: why steps are eager; None while they are captured, or not tried yet.

    The first call of each batch shape captures: it takes `WARM_UP` eager steps' time, trains on
    that batch once, as any call does, and leaves a line in the log if it had to stay eager.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        autocast: torch.dtype | None = torch.bfloat16,
    ) -> None:
        self.model, self.optimizer, self.autocast = model, optimizer, autocast
        self.reason = why_not(model, optimizer)
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        if self.reason is not None:
            logger.info("training steps stay eager: %s", self.reason)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Train on a batch; returns the loss before the step, a scalar on the device."""
        if self.reason is not None:
            return self._eager(batch)
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        if key not in self._graphs:
            before = self._snapshot()
            try:
                self._graphs[key] = _Graph(self._eager, batch, before)
            except RuntimeError as error:
                torch.cuda.synchronize()
                before.restore()
                self.reason = str(error).split("\n")[0]
                logger.warning("training steps stay eager; capturing failed: %s", self.reason)
                return self._eager(batch)
        return self._graphs[key].replay(batch)

    def _eager(self, batch: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast("cuda", self.autocast, enabled=self.autocast is not None):
            loss: Tensor = self.model(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        # Gradients get their memory inside the graph, at the same place in each replay.
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _snapshot(self) -> _Snapshot:
        return _Snapshot([p for p in self.model.parameters() if p.requires_grad], self.optimizer)


class _Snapshot:
    """Parameters and optimizer state before the warm-up, which must leave no trace."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters = [(p, p.detach().clone()) for p in parameters]
        self.state = {
            p: {name: t.clone() for name, t in optimizer.state[p].items()}
            for p in parameters
            if p in optimizer.state
        }

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, value in self.parameters:
            parameter.copy_(value)
        for parameter, _ in self.parameters:
            for name, tensor in self.optimizer.state[parameter].items():
                # State that the warm-up made begins at zero, in the place that the graph knows.
                old = self.state.get(parameter, {}).get(name)
                tensor.zero_() if old is None else tensor.copy_(old)


class _Graph:
    """One captured step for batches of one shape."""

    def __init__(self, step: Any, batch: Mapping[str, Tensor], before: _Snapshot) -> None:
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step(self.batch)
        torch.cuda.current_stream().wait_stream(side)
        before.restore()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = step(self.batch)

    def replay(self, batch: Mapping[str, Tensor]) -> Tensor:
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.loss.clone()
