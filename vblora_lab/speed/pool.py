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
    in later passes of one `generate`  if every parameter has the version and place it had;
                                       from the second on, added to copies of the weights
    in the backward pass               by layers that gradient checkpointing calls again: those of
                                       the last pass with gradients, whatever passes without any
                                       came after it (as the reference's in DPO)

(A write in place through `.data`, from within `generate` itself, leaves no version behind; it is
seen by the next call.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from vblora_lab.admixture import admixture, choose, mix
from vblora_lab.speed import kernels

_version = attrgetter("_version")

SMALL = 2**23  # logits that are laid side by side in plain PyTorch: 32 MiB in float32


Fold = tuple[Tensor, Tensor | None]  # W + B A (out, in) and the bias of a layer


class PooledLayer(Protocol):
    """What the pool asks of a layer; `layers.VBLoRALayer` says what each gives."""

    topk: dict[str, int]

    @property
    def disable_adapters(self) -> bool: ...
    @property
    def merged(self) -> bool: ...
    def base_weight(self) -> Tensor: ...
    def logits(self, adapter: str, /) -> tuple[Tensor, Tensor]: ...
    def bank(self, adapter: str) -> Tensor: ...
    def fold(self, matrices: Mapping[str, Matrices]) -> Fold | None: ...


class Matrices(NamedTuple):
    """A (r, in_features) and the transpose of B, (r, out_features).

    There may be rows of zeros at their ends (see `kernels.fused_admixture`).
    """

    A: Tensor
    B_T: Tensor


Key = tuple[str, str]  # adapter and name of a layer


class _Kept(NamedTuple):
    """The matrices of a pass that is over, for its backward pass.

    Attributes:
        matrices: of all layers.
        autocast: as it was when they were mixed.
        without_grad: those that layers got while gradients were off (see `Pool._leaf`).
        leaves: what stands in for them in a backward pass that isn't over yet.
    """

    matrices: dict[Key, Matrices]
    autocast: torch.dtype | None
    without_grad: set[Key]
    leaves: dict[Key, Matrices]

    @classmethod
    def nothing(cls) -> _Kept:
        return cls({}, None, set(), {})


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
    if kernels.usable([part for pair in logits for part in pair], bank, topk):
        sub_vectors = kernels.fused_admixture(logits, bank, topk, dtype)
    else:
        sub_vectors = _side_by_side(logits, bank, topk).to(dtype)
    length = bank.shape[1]
    columns = [tiles * length for A, B in logits for tiles in (A.shape[1], B.shape[0])]
    parts = iter(sub_vectors.flatten(1).split(columns, dim=1))
    return [Matrices(A, B_T) for A, B_T in zip(parts, parts, strict=True)]


def _side_by_side(logits: Sequence[tuple[Tensor, Tensor]], bank: Tensor, topk: int) -> Tensor:
    """Sub-vectors (r, tiles of all layers, vector_length), in plain PyTorch."""
    parts = [part for A, B in logits for part in (A, B.transpose(0, 1))]
    if sum(part.numel() for part in parts) <= SMALL:
        return admixture(torch.cat(parts, dim=1), bank, topk)
    # So many logits are better not copied: choose layer by layer, and mix what was chosen.
    choices = zip(*(choose(part, topk) for part in parts), strict=True)
    indices, weights = (torch.cat(chosen, dim=1) for chosen in choices)
    return mix(indices, weights, bank)


class Pool:
    """The matrices of all adapted layers of one model, and when they may be used.

    Attributes:
        layers: by adapter, then by name: the layers whose matrices are mixed here.
        folds: by name of a layer, W + B A and the bias, while they hold (see `_fold`).
    """

    def __init__(self) -> None:
        self.layers: dict[str, Mapping[str, PooledLayer]] = {}
        self._forget()

    def _forget(self) -> None:
        self._matrices: dict[Key, Matrices] = {}
        self._without_grad: set[Key] = set()
        self._autocast: torch.dtype | None = None  # as it was when they were mixed
        self._kept = _Kept.nothing()
        self._taken_by: dict[str, int] = {}  # see `enter`
        self._thread: int | None = None  # which runs a pass now
        self._calls = 0  # how deep in `held` blocks and passes it is
        self._last_cast: tuple[object, ...] = ()
        self._release()

    def _release(self) -> None:
        """Forget what is for the passes of one `held` block."""
        self.folds: dict[str, Fold] = {}
        self._watched: list[Tensor] = []
        self._state: tuple[object, ...] = ()
        self._passes = 0

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
        for matrices in (self._matrices, self._kept.matrices, self._kept.leaves):
            for key in [key for key in matrices if key[0] == adapter]:
                del matrices[key]

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
        this = _this_thread()
        # `setdefault` is one step: of two threads that come at the same moment, one gets in.
        if self._taken_by.setdefault("thread", this) != this:
            return
        self._thread = this
        self._calls += 1

    def leave(self) -> None:
        """It ends. Its matrices are kept for the backward pass, if there can be one."""
        if self._thread != _this_thread():
            return
        self._calls -= 1
        if self._calls == 0:
            self._last_cast = ()
            self._release()
            if not torch.compiler.is_compiling() and self._may_be_differentiated():
                self._kept = _Kept(self._matrices, self._autocast, self._without_grad, {})
            self._matrices = {}
            self._thread = None
            self._taken_by.clear()  # last: from here on, another thread may be in

    def _may_be_differentiated(self) -> bool:
        return torch.is_grad_enabled() and any(m.A.requires_grad for m in self._matrices.values())

    def mix(self, adapters: Iterable[str], may_fold: bool = True) -> None:
        """Mix the matrices of some adapters, unless those that are held are theirs."""
        if self._thread != _this_thread():
            return
        names = [name for name in adapters if self._is_in_use(name)]
        held = self._calls > 1 and not torch.is_grad_enabled()
        if held and not torch.compiler.is_compiling():
            self._watched = self._watched or self._parameters(names)
            state = self._fingerprint(names)
            if state == self._state:
                self._passes += 1
                if self._passes == 1 and may_fold:
                    self._fold(names)
                return
            self._release()
            self._state, self._watched = state, self._parameters(names)
        self._without_grad = set()
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The graph of the last pass goes before the next is made. (Through it the parameters'
            # gradient nodes would live on, and with them the stream that was current then.)
            self._kept = _Kept.nothing()
        self._matrices = {
            key: matrices for name in names for key, matrices in self._mixed(name).items()
        }

    def _is_in_use(self, adapter: str) -> bool:
        layers = self.layers.get(adapter)
        first = next(iter(layers.values())) if layers else None
        return first is not None and not first.disable_adapters and not first.merged

    def _mixed(self, adapter: str) -> dict[Key, Matrices]:
        result: dict[Key, Matrices] = {}
        for group in self._by_device(adapter):
            first = self.layers[adapter][next(iter(group))]
            logits = list(group.values())
            device = logits[0][0].device
            self._autocast = autocast_dtype(device)
            dtype = self._autocast or logits[0][0].dtype
            mixed = mix_all(logits, first.bank(adapter), first.topk[adapter], dtype)
            result |= {(adapter, name): m for name, m in zip(group, mixed, strict=True)}
        return result

    def _by_device(self, adapter: str) -> Iterable[dict[str, tuple[Tensor, Tensor]]]:
        """The logits that can be mixed in one call: a model may be spread over several devices."""
        groups: dict[tuple[torch.device, torch.dtype], dict[str, tuple[Tensor, Tensor]]] = {}
        for name, layer in self.layers[adapter].items():
            logits = layer.logits(adapter)
            groups.setdefault((logits[0].device, logits[0].dtype), {})[name] = logits
        return groups.values()

    # --- several passes of one `held` block

    def _parameters(self, adapters: Sequence[str]) -> list[Tensor]:
        """All that matrices and folds are made of."""
        result = []
        for adapter in adapters:
            for layer in self.layers[adapter].values():
                result += [*layer.logits(adapter), layer.base_weight()]
            result.append(layer.bank(adapter))
        return result

    def _fingerprint(self, adapters: Sequence[str]) -> tuple[object, ...]:
        """Changes with every parameter that is changed in place or put in another's place."""
        watched = self._watched
        autocast = autocast_dtype(watched[0].device) if watched else None
        # Asked once per token, of hundreds of parameters: `map` is several times a loop's speed.
        places, versions = map(Tensor.data_ptr, watched), map(_version, watched)
        return *adapters, torch.is_inference_mode_enabled(), autocast, *places, *versions

    def _fold(self, adapters: Sequence[str]) -> None:
        """Add the updates to copies of the weights, from the second token of `generate` on.

        A pass over one token is all launches; with W + B A in one matrix it has no more of them
        than the base model's. The base weights stay as they are. The sum is rounded to the
        weights' dtype, as in merging. Not done where the copies would take much memory.
        """
        by_name: dict[str, dict[str, Matrices]] = {}
        for (adapter, name), matrices in self._matrices.items():
            by_name.setdefault(name, {})[adapter] = matrices
        layers = {name: layer for a in adapters for name, layer in self.layers[a].items()}
        weights = [layer.base_weight() for layer in layers.values()]
        if not weights or sum(weight.nbytes for weight in weights) > _to_spare(weights[0].device):
            return
        for name, layer in layers.items():
            folded = layer.fold(by_name.get(name, {}))
            if folded is not None:
                self.folds[name] = folded

    def unfold(self) -> None:
        """A layer was switched, merged or the like: what was folded may stand no longer."""
        self.folds = {}

    def folded(self, name: str) -> Fold | None:
        """Weight and bias that stand for a layer with its active adapters, if they do now."""
        fold = self.folds.get(name)
        if (  # asked by every layer for every token, so as little as can be
            fold is None
            or torch.is_grad_enabled()
            or self._thread != threading.get_ident()
            or autocast_dtype(fold[0].device) != self._autocast
        ):
            return None
        return fold

    # --- layers ask

    def get(self, adapter: str, name: str, autocast: torch.dtype | None) -> Matrices | None:
        """The matrices of one layer, if there are any that it may use under this autocast."""
        key = (adapter, name)
        compiling = torch.compiler.is_compiling()
        if compiling or (self._calls and self._thread == _this_thread()):
            matrices = self._matrices.get(key)
            if matrices is None or autocast != self._autocast:
                return None
            if not compiling and matrices.A.requires_grad and not torch.is_grad_enabled():
                # Reentrant checkpointing: the layer is called again, with gradients, later.
                self._without_grad.add(key)
            return matrices
        kept = self._kept
        if key not in kept.matrices or autocast != kept.autocast or not _in_backward():
            return None
        return self._leaf(key) if key in kept.without_grad else kept.matrices[key]

    def cast_input(self, x: Tensor, autocast: torch.dtype | None) -> Tensor:
        """The input of a linear layer in autocast's dtype, if that is on.

        Autocast would cast it in the base layer and again in the adapter, and for q, k and v each:
        they get the same tensor, so one cast, kept until the next, serves all six.
        """
        if autocast is None or x.dtype in (autocast, torch.float64) or not x.is_floating_point():
            return x
        if torch.compiler.is_compiling() or self._thread != _this_thread():
            return x.to(autocast)
        last, grad = self._last_cast, torch.is_grad_enabled()
        if not (last and last[0] is x and last[1:3] == (x._version, grad)):
            self._last_cast = last = (x, x._version, grad, x.to(autocast))
        return cast(Tensor, last[3])

    def _leaf(self, key: Key) -> Matrices:
        """Stand-ins for the matrices of a layer that reentrant checkpointing calls again.

        Each checkpointed part has a backward pass of its own, within the outer one. It must not
        walk on into the one admixture that all parts share, which would then run once per part
        (and DistributedDataParallel refuses a second gradient of the bank). So gradients gather at
        these leaves, and go on from there once, when the outer pass is over.
        """
        matrices, leaves = self._kept.matrices, self._kept.leaves
        if key not in leaves:
            if not leaves:
                engine = torch.autograd.Variable._execution_engine
                engine.queue_callback(self._pass_on_gradients)
            leaves[key] = Matrices(*(m.detach().requires_grad_() for m in matrices[key]))
        return leaves[key]

    def _pass_on_gradients(self) -> None:
        pairs = [
            (matrix, leaf.grad)
            for key, leaves in self._kept.leaves.items()
            for matrix, leaf in zip(self._kept.matrices[key], leaves, strict=True)
            if leaf.grad is not None
        ]
        self._kept.leaves.clear()
        matrices, gradients = zip(*pairs, strict=True)
        # The graph is retained: after two passes, each with a backward pass of its own, both pass
        # on their gradients here, through the matrices of the second, which are equal.
        torch.autograd.backward(matrices, gradients, retain_graph=True)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on a device now; None where it is off."""
    kind = device.type
    if kind not in ("cpu", "cuda") and not torch.amp.is_autocast_available(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _to_spare(device: torch.device) -> int:
    """Bytes that copies of weights may take."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**28


def _this_thread() -> int:
    # The compiler can't trace this; it never runs one model in two threads either.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _in_backward() -> bool:
    """Whether autograd is at work in this thread, as it is when a checkpointed part runs again."""
    return torch._C._current_graph_task_id() != -1
