"""What a pass leaves for its backward pass, in which gradient checkpointing calls layers again.

Two functions of PyTorch that are not documented are needed here: one says that autograd is at work
in this thread, the other calls back when a backward pass is over. tests/speed/test_backward.py
holds both to what is said here. Without them, models with gradient checkpointing would have to mix
layer by layer; the section ``checkpointing`` of benchmarks/speed.py measures what that would cost.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch

from vblora_lab.speed.autograd import in_backward
from vblora_lab.speed.mixing import Matrices
from vblora_lab.speed.one_input import OneInput

Key = tuple[str, str]  # adapter and name of a layer


class KeptMatrices:
    """The matrices of the last pass with gradients, whatever passes without any came after it.

    Args:
        matrices: of all layers, by adapter and name.
        autocast: as it was when they were mixed.
        without_grad: those that layers got while gradients were off. Reentrant checkpointing runs
            its parts so, and calls them again with gradients (see `BackwardPass`).
    """

    def __init__(
        self, matrices: Mapping[Key, Matrices], autocast: torch.dtype | None, without_grad: set[Key]
    ) -> None:
        self._matrices = dict(matrices)
        self.autocast = autocast
        self._without_grad = without_grad
        self.inputs = OneInput()
        # Autograd holds it while it runs, and alone: should the pass fail, it is gone with it.
        self._running: weakref.ReferenceType[BackwardPass] | None = None

    def get(self, key: Key, autocast: torch.dtype | None) -> Matrices | None:
        """The matrices for a layer that is called again in the backward pass; None for any other.

        They are equal to those of the pass that is differentiated, if it was not the last one too:
        parameters change between steps, not between passes whose gradients are accumulated.
        """
        if key not in self._matrices or autocast != self.autocast or not in_backward():
            return None
        return self._backward_pass().leaf(key) if key in self._without_grad else self._matrices[key]

    def drop(self, adapter: str) -> None:
        """Let go of the matrices of a deleted adapter."""
        for key in [key for key in self._matrices if key[0] == adapter]:
            del self._matrices[key]

    def _backward_pass(self) -> BackwardPass:
        running = None if self._running is None else self._running()
        if running is None or running.is_over:
            running = BackwardPass(self._matrices)
            torch.autograd.Variable._execution_engine.queue_callback(running)
            self._running = weakref.ref(running)
        return running


class BackwardPass:
    """Stand-ins for matrices while one backward pass runs that calls checkpointed parts again.

    Each such part has a backward pass of its own, within the outer one. It must not walk on into
    the one admixture that all parts share, which would then run once per part (and
    DistributedDataParallel refuses a second gradient of the bank). So gradients gather at these
    leaves, and go on from there once, when autograd calls this object: the outer pass is over.
    """

    def __init__(self, matrices: Mapping[Key, Matrices]) -> None:
        self._matrices = matrices
        self._leaves: dict[Key, Matrices] = {}
        self.is_over = False

    def leaf(self, key: Key) -> Matrices:
        """The same numbers as the matrices of a layer, cut off from what they are made of."""
        if key not in self._leaves:
            A, B_T = (matrix.detach().requires_grad_() for matrix in self._matrices[key])
            self._leaves[key] = Matrices(A, B_T)
        return self._leaves[key]

    def __call__(self) -> None:
        """Pass the gathered gradients on to logits and bank."""
        self.is_over = True
        pairs = [
            (matrix, leaf.grad)
            for key, leaves in self._leaves.items()
            for matrix, leaf in zip(self._matrices[key], leaves, strict=True)
            if leaf.grad is not None
        ]
        self._leaves = {}
        if pairs:
            matrices, gradients = zip(*pairs, strict=True)
            # The graph is retained: after two passes, each with a backward pass of its own, both
            # pass on their gradients here, through the matrices of the second, which are equal.
            torch.autograd.backward(matrices, gradients, retain_graph=True)
