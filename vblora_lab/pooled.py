"""One admixture per forward pass, for all layers at once.

Layer by layer, every pass costs two top-k, two softmax and two weighted sums per adapted layer,
forward and backward. But all logits of an adapter index the same bank, and its layers share one
rank r, so the logits of the whole model can be laid side by side, mixed in one call, and the
result cut into each layer's A and B:

    logits    (r, T, num_vectors)          T: tiles of all layers, A's and B's
    mixed     (r, T * vector_length)       one wide matrix
    A         (r, in_features)             a range of its columns, without a copy
    B_T       (r, out_features)            another; the transpose of B

A matrix that is older than the parameters it came from is a wrong answer that nobody sees. So the
matrices are used in these cases only, and anybody else mixes anew:

    during the pass that mixed them    by the thread that runs it
    in later passes of one `generate`  if every parameter has the version and place it had
    in the backward pass               by layers that gradient checkpointing calls again
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from vblora_lab import fused
from vblora_lab.admixture import admixture, choose, mix

SMALL = 2**23  # logits that are laid side by side in plain PyTorch: 32 MiB in float32


class PooledLayer(Protocol):
    """What the pool asks of a layer; `layers.VBLoRALayer` says what each gives."""

    topk: dict[str, int]

    @property
    def disable_adapters(self) -> bool: ...
    @property
    def merged(self) -> bool: ...
    def logits(self, adapter: str) -> tuple[Tensor, Tensor]: ...
    def bank(self, adapter: str) -> Tensor: ...
    def matrix_dtype(self, adapter: str) -> torch.dtype: ...


class Matrices(NamedTuple):
    """A (r, in_features) and the transpose of B, (r, out_features)."""

    A: Tensor
    B_T: Tensor


def mix_all(
    logits: Sequence[tuple[Tensor, Tensor]], bank: Tensor, topk: int, dtype: torch.dtype
) -> list[Matrices]:
    """Build the matrices of many layers in one admixture.

    Args:
        logits: per layer, those of A (r, in_tiles, num_vectors) and B (out_tiles, r, num_vectors).
        bank: (num_vectors, vector_length).
        topk: how many bank vectors make a sub-vector.
        dtype: of the result; mixing itself happens in that of the logits.
    """
    side_by_side = [part for A, B in logits for part in (A, B.transpose(0, 1))]
    if fused.usable(side_by_side, bank, topk):
        sub_vectors = fused.fused_admixture(side_by_side, bank, topk, dtype)
    elif sum(part.numel() for part in side_by_side) <= SMALL:
        sub_vectors = admixture(torch.cat(side_by_side, dim=1), bank, topk).to(dtype)
    else:
        # So many logits are better not copied: choose layer by layer, and mix what was chosen.
        choices = zip(*(choose(part, topk) for part in side_by_side), strict=True)
        indices, weights = (torch.cat(chosen, dim=1) for chosen in choices)
        sub_vectors = mix(indices, weights, bank).to(dtype)
    mixed = sub_vectors.flatten(1)
    columns = [part.shape[1] * bank.shape[1] for part in side_by_side]
    parts = iter(mixed.split(columns, dim=1))
    return [Matrices(A, B_T) for A, B_T in zip(parts, parts, strict=True)]


class Pool:
    """The matrices of all adapted layers of one model, and when they may be used.

    Attributes:
        layers: by adapter, then by name: the layers whose matrices are mixed here.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Mapping[str, PooledLayer]] = {}
        self._forget()

    def _forget(self) -> None:
        self._matrices: dict[tuple[str, str], Matrices] = {}
        self._leaves: dict[tuple[str, str], Matrices] = {}
        self._without_grad: set[tuple[str, str]] = set()
        self._state: tuple[object, ...] = ()
        self._thread: int | None = None  # which runs a pass now
        self._calls = 0  # how deep in `held` blocks and passes it is
        self._last_cast: tuple[object, ...] = ()

    def __getstate__(self) -> dict[str, object]:
        # A copy of the model, or one read from a file, mixes for itself.
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, dict[str, Mapping[str, PooledLayer]]]) -> None:
        self.layers = state["layers"]
        self._forget()

    # --- passes

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, passes without gradients use the matrices of the first, until one is stale."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """A pass or a `held` block begins; a second thread's stays out and mixes layer by layer."""
        if self._calls and self._thread != _this_thread():
            return
        self._thread = _this_thread()
        self._calls += 1

    def leave(self) -> None:
        """It ends. Its matrices stay for the backward pass, if there can be one."""
        if self._thread != _this_thread():
            return
        self._calls -= 1
        if self._calls == 0:
            self._thread = None
            self._state = self._last_cast = ()
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                self._matrices = {}

    def mix(self, adapters: Iterable[str]) -> None:
        """Mix the matrices of some adapters, unless those that are held are theirs."""
        if self._thread != _this_thread():
            return
        names = [name for name in adapters if self._is_in_use(name)]
        state: tuple[object, ...] = ()
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            state = self._fingerprint(names)
            if state == self._state:
                return
        self._leaves, self._without_grad = {}, set()
        self._matrices = {
            key: matrices for name in names for key, matrices in self._mixed(name).items()
        }
        self._state = state

    def _is_in_use(self, adapter: str) -> bool:
        layers = self.layers.get(adapter)
        first = next(iter(layers.values())) if layers else None
        return first is not None and not first.disable_adapters and not first.merged

    def _mixed(self, adapter: str) -> dict[tuple[str, str], Matrices]:
        result: dict[tuple[str, str], Matrices] = {}
        for group in self._by_device(adapter):
            first = next(iter(group.values()))
            logits = [layer.logits(adapter) for layer in group.values()]
            bank = first.bank(adapter)
            dtype = first.matrix_dtype(adapter)
            mixed = mix_all(logits, bank, first.topk[adapter], dtype)
            result |= {(adapter, name): m for name, m in zip(group, mixed, strict=True)}
        return result

    def _by_device(self, adapter: str) -> Iterable[dict[str, PooledLayer]]:
        """The layers that can be mixed in one call: a model may be spread over several devices."""
        groups: dict[tuple[torch.device, torch.dtype], dict[str, PooledLayer]] = {}
        for name, layer in self.layers[adapter].items():
            A, _ = layer.logits(adapter)
            groups.setdefault((A.device, A.dtype), {})[name] = layer
        return groups.values()

    def _fingerprint(self, adapters: Sequence[str]) -> tuple[object, ...]:
        """Changes with every parameter that is changed in place or put in another's place."""
        parts: list[object] = [*adapters, torch.is_inference_mode_enabled()]
        for adapter in adapters:
            layers = self.layers[adapter]
            first = next(iter(layers.values()))
            parts.append(first.matrix_dtype(adapter))
            for parameter in (
                first.bank(adapter),
                *(p for layer in layers.values() for p in layer.logits(adapter)),
            ):
                parts += (parameter.data_ptr(), parameter._version)
        return tuple(parts)

    # --- layers ask

    def get(self, adapter: str, name: str, dtype: torch.dtype) -> Matrices | None:
        """The matrices of one layer in this dtype, if there are any that it may use now."""
        key = (adapter, name)
        matrices = self._matrices.get(key)
        if matrices is None or matrices.A.dtype != dtype:
            return None
        if torch.compiler.is_compiling():
            return matrices
        if self._calls and self._thread == _this_thread():
            if matrices.A.requires_grad and not torch.is_grad_enabled():
                # Reentrant checkpointing: the layer is called again, with gradients, later.
                self._without_grad.add(key)
            return matrices
        if not _in_backward():
            return None
        return self._leaf(key) if key in self._without_grad else matrices

    def autocast(self, x: Tensor) -> Tensor:
        """The input of a linear layer in autocast's dtype, if that is on.

        Autocast would cast it in the base layer and again in the adapter, and for q, k and v each:
        they get the same tensor, so one cast, kept until the next, serves all six.
        """
        dtype = autocast_dtype(x.device)
        if dtype is None or x.dtype in (dtype, torch.float64) or not x.is_floating_point():
            return x
        if torch.compiler.is_compiling() or self._thread != _this_thread():
            return x.to(dtype)
        last, grad = self._last_cast, torch.is_grad_enabled()
        if not (last and last[0] is x and last[1:3] == (x._version, grad)):
            self._last_cast = last = (x, x._version, grad, x.to(dtype))
        return cast(Tensor, last[3])

    def _leaf(self, key: tuple[str, str]) -> Matrices:
        """Stand-ins for the matrices of a layer that reentrant checkpointing calls again.

        Each checkpointed part has a backward pass of its own, within the outer one. It must not
        walk on into the one admixture that all parts share, which would then run once per part
        (and DistributedDataParallel refuses a second gradient of the bank). So gradients gather at
        these leaves, and go on from there once, when the outer pass is over.
        """
        if key not in self._leaves:
            if not self._leaves:
                engine = torch.autograd.Variable._execution_engine
                engine.queue_callback(self._pass_on_gradients)
            matrices = self._matrices[key]
            self._leaves[key] = Matrices(*(m.detach().requires_grad_() for m in matrices))
        return self._leaves[key]

    def _pass_on_gradients(self) -> None:
        pairs = [
            (matrix, leaf.grad)
            for key, leaves in self._leaves.items()
            for matrix, leaf in zip(self._matrices[key], leaves, strict=True)
            if leaf.grad is not None
        ]
        self._leaves = {}
        matrices, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(matrices, gradients)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on a device now; None where it is off."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def _this_thread() -> int:
    # The compiler can't trace this; it never runs one model in two threads either.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _in_backward() -> bool:
    """Whether autograd is at work in this thread, as it is when a checkpointed part runs again."""
    return torch._C._current_graph_task_id() != -1
