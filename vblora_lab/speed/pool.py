"""Where the layers of a model get their A and B from: one admixture a pass serves all of them.

A matrix that is older than the parameters it came from is a wrong answer that nobody sees. So
matrices are used in three cases only, each an object with one owner, and any other call of a layer
mixes anew:

    Pass           the pass that mixed them, in the thread that runs it. Its block owns it.
    HeldBlock      later passes of the same call of `generate`, while every parameter has the
                   version and place it had. The ``with`` statement around the call owns it, and
                   ends both, whatever is raised.
    BackwardPass   layers that gradient checkpointing calls again. Autograd owns it, and drops it
                   when the backward pass is over or has failed.

So a base model that is called by itself, outside of `PeftModel`, mixes layer by layer: nobody would
end its pass after an interrupt (PyTorch runs no hook then).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.nn.parallel import DistributedDataParallel

from vblora_lab.speed.autograd import in_backward
from vblora_lab.speed.backward import KeptMatrices
from vblora_lab.speed.blocks import Fold, HeldBlock, Pass, PooledLayer
from vblora_lab.speed.by_unit import PassByUnit
from vblora_lab.speed.mixing import Matrices, autocast_dtype, mix_all
from vblora_lab.speed.moving import mix_moving
from vblora_lab.speed.one_input import OneInput
from vblora_lab.speed.rows import LiveAdapters, RowBatch

Running = Pass | KeptMatrices  # where layers get their matrices from
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., None])


def no_graph_of_its_own(function: AnyFunction) -> AnyFunction:
    """Mark a function that runs as it is wherever a compiler hasn't begun a graph before it.

    It can be a part of a graph. But where a model breaks its graph early, the compiler would make
    one of the admixture alone, whose hundreds of results then have to enter the next.
    """
    # How the compiler marks such functions itself; tests/speed/test_compiled.py holds it to that.
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    set_code_exec_strategy(cast(Any, function).__code__, skip)
    return function


class MatrixPool:
    """The matrices A and B of all adapted layers of one model, and when they may be used.

    Each thread has its own block and passes.

    Attributes:
        layers: by adapter, then by name: the layers whose matrices are mixed here.
        blocks: those that are entered now, by thread.
        only_block: the one, if there are no others. Compiled code can't ask in which thread it
            runs, so it knows no other, and mixes layer by layer while there are several.
        has_folds: whether any of them holds folded weights, for layers to ask in no time.
        row_batches: batches with an adapter for each sample that run now, by thread.
        live: adapters that such a batch may name beside those of the layers, see `serving.live`.
        units: of a model that FSDP cuts over processes: by name of each layer, that of the unit
            with which it is whole.
        turns: for threads that each need another adapter to be active (see `tuner.turns`).
    """

    def __init__(self) -> None:
        self.layers: dict[str, Mapping[str, PooledLayer]] = {}
        self._forget()

    def _forget(self) -> None:
        self.blocks: dict[int, HeldBlock] = {}
        self.only_block: HeldBlock | None = None
        self.has_folds = False
        self.row_batches: dict[int, RowBatch] = {}
        self.live: LiveAdapters | None = None
        self.units: Mapping[str, str] = {}
        self._kept: KeptMatrices | None = None
        self.turns = threading.RLock()

    def __getstate__(self) -> dict[str, object]:
        # A copy of the model, or one read from a file, mixes for itself.
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, dict[str, Mapping[str, PooledLayer]]]) -> None:
        self.layers = state["layers"]
        self._forget()

    def drop(self, adapter: str) -> None:
        """Let go of a deleted adapter: its layers, and matrices that a backward pass could need."""
        self.layers.pop(adapter, None)
        self.unfold()
        if self._kept is not None:
            self._kept.drop(adapter)

    # --- blocks and passes

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around one call of the model; a block within another of the same thread is part of it."""
        if self._block() is not None:
            yield
            return
        thread = _this_thread()
        try:
            block = self.blocks[thread] = HeldBlock(self.layers)
            self._look_for_only_block()
            yield
            self._keep_for_backward(block)
        finally:
            ended = self.blocks.pop(thread, None)
            self._look_for_only_block()
            self._look_for_folds()
            if ended is not None:
                ended.end()

    def begin_pass(self, adapters: Iterable[str], hand_out: bool = True) -> None:
        """The model is called: mix the matrices of some adapters, if this is within a block.

        Those of a batch with an adapter for each sample are mixed instead, if there is one.

        Args:
            adapters: the active ones.
            hand_out: whether layers that are compiled may have the matrices. Not those that are
                called again in the backward pass, where they mix for themselves, and the first
                call must have done the same.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The graph of the last pass goes before the next is made. (Through it the parameters'
            # gradient nodes would live on, and with them the stream that was current then.)
            self._kept = None
        block = self._block()
        if block is None:
            return
        batch = self.row_batch()
        if batch is not None and self.units:  # its layers mix for themselves
            return
        if batch is not None:
            batch.begin_pass()
            adapters = ()
        in_use = [name for name in adapters if self._is_in_use(name)]
        if self.units:
            block.begin(PassByUnit(self.layers, in_use, self.units))
            return
        block.begin_pass(in_use, hand_out and block is self.only_block)
        self._look_for_folds()

    def end_pass(self) -> None:
        """The call is over, well or not."""
        block, batch = self._block(), self.row_batch()
        if batch is not None:
            batch.end_pass()
        if block is not None:
            block.end_pass()

    @contextmanager
    def batch(self, rows: RowBatch) -> Iterator[None]:
        """Around one call of the model whose samples have different adapters."""
        thread = threading.get_ident()
        before = self.row_batches.get(thread)
        try:
            self.row_batches[thread] = rows
            yield
        finally:
            self.row_batches.pop(thread, None)
            if before is not None:
                self.row_batches[thread] = before

    def row_batch(self) -> RowBatch | None:
        """The batch with an adapter for each sample that runs now in this thread."""
        return self.row_batches.get(threading.get_ident()) if self.row_batches else None

    def _block(self) -> HeldBlock | None:
        """The block of this thread."""
        if torch.compiler.is_compiling():
            return self.only_block
        return self.blocks.get(threading.get_ident())

    def _look_for_only_block(self) -> None:
        blocks = tuple(self.blocks.values())
        self.only_block = blocks[0] if len(blocks) == 1 else None

    def _is_in_use(self, adapter: str) -> bool:
        layers = self.layers.get(adapter)
        first = next(iter(layers.values())) if layers else None
        return first is not None and not first.disable_adapters and not first.merged

    def _keep_for_backward(self, block: HeldBlock) -> None:
        last = block.latest
        if last is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if last.without_grad and _in_static_graph():
            return
        self._kept = last.kept() or self._kept

    # --- folded weights

    def folded(self, name: str) -> Fold | None:
        """Weight and bias that stand for a layer with its active adapters, if they do now."""
        block = self._block()
        if block is None or block.current is None or torch.is_grad_enabled():
            return None
        fold = block.folds.get(name)
        if fold is None or autocast_dtype(fold[0].device) != block.current.autocast:
            return None
        return fold

    def unfold(self) -> None:
        """A layer was switched, merged or the like: what was computed may stand no longer."""
        for block in tuple(self.blocks.values()):
            block.unfold()
        if self._kept is not None:
            self._kept.inputs.end()
        self.has_folds = False

    def _look_for_folds(self) -> None:
        self.has_folds = any(block.folds for block in tuple(self.blocks.values()))

    # --- layers ask

    def running(self) -> Running | None:
        """The pass of this thread that runs now, or runs again within its backward pass.

        Not for compiled code, which can't ask in which thread it runs.
        """
        block = self.blocks.get(threading.get_ident())
        if block is not None and block.current is not None:
            return block.current
        return self._kept if self._kept is not None and in_backward() else None

    def get(
        self, adapter: str, layer: PooledLayer, autocast: torch.dtype | None
    ) -> Matrices | None:
        """The matrices of one layer, if there are any that it may use under this autocast."""
        if torch.compiler.is_compiling():
            return self._handed_out(adapter, layer, autocast)
        running = self.running()
        return None if running is None else running.get((adapter, layer.name_in_pool), autocast)

    def mix_alone(self, adapter: str, layer: PooledLayer, autocast: torch.dtype | None) -> Matrices:
        """The matrices of one layer, where there are none that it may use."""
        logits, bank, topk = layer.logits(adapter), layer.bank(adapter), layer.topk[adapter]
        if self.units and not torch.compiler.is_compiling():
            return mix_moving([logits], bank, topk, autocast or logits[0].dtype)[0]
        return mix_all([logits], bank, topk, autocast or bank.dtype)[0]

    def _handed_out(
        self, adapter: str, layer: PooledLayer, autocast: torch.dtype | None
    ) -> Matrices | None:
        current = None if self.only_block is None else self.only_block.current
        if current is None or not current.handed_out or current.autocast != autocast:
            return None
        return layer.mixed.get(adapter)

    def inputs(self, autocast: torch.dtype | None) -> OneInput | None:
        """What layers with the same input share in the pass that runs now, or runs again.

        None outside of any, and for compiled code: a compiler sees by itself what is the same.
        """
        running = None if torch.compiler.is_compiling() else self.running()
        return None if running is None or running.autocast != autocast else running.inputs


def _in_static_graph() -> bool:
    """Whether DistributedDataParallel calls the model, and counts on one graph for all steps.

    It reduces gradients in a callback of its own at the end of the backward pass, before that of
    `BackwardPass`, whose gradients would come too late. Layers that reentrant checkpointing calls
    again mix anew then.
    """
    wrapper = DistributedDataParallel._get_active_ddp_module()
    return wrapper is not None and bool(wrapper.static_graph)


def _this_thread() -> int:
    # The compiler can't trace this; it never traces one model in two threads either.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
