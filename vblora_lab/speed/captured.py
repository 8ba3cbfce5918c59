"""A training step as one CUDA graph: all its kernels in a single launch.

A small model on a large GPU spends its step waiting for Python to launch the next kernel. A CUDA
graph records the kernels of one step and replays them all at once. What it replays reads and
writes the very memory that it was recorded with: the batch is copied into it, shapes are fixed,
and nothing in the step may ask the device for a value.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Step = Callable[[Batch], Tensor]

WARM_UP = 3  # eager steps on a side stream first, in which libraries allocate what they keep
MAX_GRAPHS = 16  # batch shapes that are captured; each holds a few MB, and its first step is slow


def why_not(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str | None:
    """Why steps of this model can't be captured, in a sentence, or None if they can be tried."""
    if not any(p.requires_grad for p in model.parameters()):
        return "nothing is trained"
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return "the model isn't on one CUDA device"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "several processes train together"
    if any(_keeps_random_state(module) for module in model.modules()):
        return (
            "gradient checkpointing keeps the state of random numbers for the second call, which "
            "a graph can't. Where nothing is dropped there is no need to: "
            'gradient_checkpointing_kwargs={"preserve_rng_state": False, "use_reentrant": False}'
        )
    if optimizer is not None and not all(g.get("capturable") for g in optimizer.param_groups):
        return "the optimizer was not made with capturable=True"
    return None


def _keeps_random_state(module: nn.Module) -> bool:
    """Whether a module is checkpointed, in the way that transformers do it, and not told to."""
    if not getattr(module, "gradient_checkpointing", False):
        return False
    options = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return bool(options.get("preserve_rng_state", True) or options.get("use_reentrant", True))


class CapturedStep:
    """Training steps of one model: captured where that is safe, else eager.

    Args:
        step: takes a batch, calls the model and `backward`, and returns the loss, detached. With
            an optimizer it also calls its `step` and `zero_grad`. Any part that is not of the
            batch must be the same each time.
        model: whose parameters the step trains.
        optimizer: if the step calls one. Made with capturable=True, and with learning rates that
            are tensors on the device if they are to change (`lr=torch.tensor(1e-3).cuda()`).
            Without, each step leaves gradients in the parameters, added to those they have.

    Attributes:
        reason: why steps are eager from now on; None while they are captured.

    The first call with each batch shape captures, which takes a few eager steps' time and trains
    on that batch once, as any call does. A model that is changed (adapters added or switched,
    weights merged, put elsewhere or frozen) is captured anew. What can't be captured stays eager
    and leaves a line with the reason in the log.
    """

    def __init__(
        self, step: Step, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self._step, self._model, self._optimizer = step, model, optimizer
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._tensors: list[nn.Parameter] = []
        self._totals: dict[nn.Parameter, Tensor] = {}  # gradients of several batches
        self._state: tuple[Any, ...] = ()
        self._pool: Any = None
        self._has_many_shapes = False
        self.reason = why_not(model, optimizer)
        if self.reason is not None:
            logger.info("training steps stay eager: %s", self.reason)

    def __call__(self, batch: Batch, variant: Hashable = None) -> Tensor:
        """Train on a batch; returns the loss before the step, a scalar on the device.

        Args:
            batch: its tensors.
            variant: whatever else the step depends on; each has graphs of its own.
        """
        if self.reason is not None:
            return self._step(batch)
        if self._state != self._state_of_model():
            # A pool whose graphs are all gone takes no new one while a gradient lies in it.
            self._graphs, self._pool = {}, None
            self._tensors = list(self._model.parameters())
            self._state = self._state_of_model()
        if self._optimizer is not None and any(p.grad is not None for p in self._tensors):
            return self._step(batch)
        shapes = [(name, tensor.shape, tensor.dtype) for name, tensor in batch.items()]
        earlier = self._set_aside()
        graph = self._graph((variant, *shapes), batch)
        loss = None if graph is None else graph.replay(batch)
        self._add(earlier)
        return self._step(batch) if loss is None else loss

    def _set_aside(self) -> dict[nn.Parameter, Tensor]:
        """Take gradients of earlier batches out of the graphs' memory, where replays write."""
        having = [p for p in self._tensors if p.grad is not None]
        totals = [self._totals.setdefault(p, torch.empty_like(p)) for p in having]
        inside = [(t, p.grad) for t, p in zip(totals, having, strict=True) if t is not p.grad]
        if inside:
            to, gradients = map(list, zip(*inside, strict=True))
            torch._foreach_copy_(to, gradients)
        for parameter in having:
            parameter.grad = None
        return dict(zip(having, totals, strict=True))

    def _add(self, earlier: dict[nn.Parameter, Tensor]) -> None:
        """Put gradients back that were set aside, and those of this batch on top of them."""
        new = [(total, p.grad) for p, total in earlier.items() if p.grad is not None]
        if new:
            totals, gradients = map(list, zip(*new, strict=True))
            torch._foreach_add_(totals, gradients)
        for parameter, total in earlier.items():
            parameter.grad = total

    def _state_of_model(self) -> tuple[Any, ...]:
        """Changes with all that a graph was recorded with: where parameters are, what is trained.

        (Switching adapters shows in what is trained, and merging in where weights are.)
        """
        return tuple((p.data_ptr(), p.requires_grad) for p in self._tensors) or ("none yet",)

    def _graph(self, key: tuple[Any, ...], batch: Batch) -> _Graph | None:
        """That of batches of one shape, captured now if there is none; None: stay eager."""
        if key in self._graphs:
            return self._graphs[key]
        if len(self._graphs) >= MAX_GRAPHS:
            self._tell_of_many_shapes()
            return None
        before = _Snapshot(self._model, self._optimizer)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            warm_up = 1 if self._graphs else WARM_UP
            self._graphs[key] = _Graph(self._step, batch, before, warm_up, self._pool)
        except RuntimeError as error:
            self.reason = str(error).split("\n")[0]
            self._give_up(before)
        return self._graphs.get(key)

    def _give_up(self, before: _Snapshot) -> None:
        torch.cuda.synchronize()
        before.restore(after_failure=True)
        self._graphs.clear()
        gc.collect()  # eager steps may need all the memory that there is
        torch.cuda.empty_cache()
        logger.warning("training steps stay eager; capturing failed: %s", self.reason)

    def _tell_of_many_shapes(self) -> None:
        if not self._has_many_shapes:
            self._has_many_shapes = True
            logger.warning(
                "batches of further shapes are trained on eagerly: %d are captured. Pad batches "
                "to a multiple of some length to have fewer.",
                MAX_GRAPHS,
            )


class _Snapshot:
    """What the warm-up must leave no trace in: parameters, optimizer and random numbers."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.device = self.trained[0].device
        self.random = self._generator.clone_state()
        self.optimizer = optimizer
        # A step without an optimizer changes no parameter.
        self.values = [p.detach().clone() for p in self.trained] if optimizer else []
        self.state = {
            p: {name: t.clone() for name, t in optimizer.state[p].items()}
            for p in self.trained
            if optimizer is not None and p in optimizer.state
        }

    @property
    def _generator(self) -> torch.Generator:
        return torch.cuda.default_generators[self.device.index]

    @torch.no_grad()
    def restore(self, after_failure: bool = False) -> None:
        if after_failure:
            # A failed capture leaves the generator believing that it is still going on.
            self._generator.graphsafe_set_state(self.random.clone_state())
        else:
            self._generator.set_state(self.random.get_state())
        for parameter in self.trained:
            parameter.grad = None
        if self.optimizer is None:
            return
        for parameter, value in zip(self.trained, self.values, strict=True):
            parameter.copy_(value)
            for name, tensor in self.optimizer.state[parameter].items():
                # State that the warm-up made begins at zero, in the place that the graph knows.
                old = self.state.get(parameter, {}).get(name)
                tensor.zero_() if old is None else tensor.copy_(old)


class _Graph:
    """One captured step for batches of one shape."""

    def __init__(
        self, step: Step, batch: Batch, before: _Snapshot, warm_up: int, pool: Any
    ) -> None:
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for number in range(warm_up):
                with _as_if_captured() if number == warm_up - 1 else nullcontext():
                    step(self.batch)
                before.restore()
        torch.cuda.current_stream().wait_stream(side)
        check_room(before.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.loss = step(self.batch)
        # Gradients that the step leaves have their place in the graph's memory.
        self.gradients = [(p, p.grad) for p in before.trained if p.grad is not None]
        for parameter, _ in self.gradients:
            parameter.grad = None

    def replay(self, batch: Batch) -> Tensor:
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.loss.clone()


@contextmanager
def _as_if_captured() -> Iterator[None]:
    """Within, a step that asks the device for a value raises RuntimeError that names the place.

    (It would fail while it is captured, and then never give its memory back, see `check_room`.)
    Libraries that ask, but not while a graph is captured, are told that one is.
    """
    mode, asked = torch.cuda.get_sync_debug_mode(), torch.cuda.is_current_stream_capturing
    try:
        torch.cuda.is_current_stream_capturing = lambda: True
        torch.cuda.set_sync_debug_mode("error")
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error) or error.__traceback__ is None:
            raise
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        where = f"{frame.f_code.co_filename}:{line}"
        raise RuntimeError(f"the step waits for a value from the device, at {where}") from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.is_current_stream_capturing = asked


def check_room(device: torch.device) -> None:
    """Raise RuntimeError where a graph's own memory, about that of an eager step, isn't free.

    To be asked after eager steps and before a capture. One that fails on the way never gives back
    what it took by then, until the process ends (PyTorch up to 2.13, pull request 190348).
    """
    torch.cuda.empty_cache()
    needed = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    free = min(free, allowed - torch.cuda.memory_reserved(device))
    if needed > free:
        raise RuntimeError(
            f"a graph needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
        )
