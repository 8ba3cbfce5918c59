"""The passes that one call makes, and what may be kept from one of them for the next.

A call of `forward` makes one pass, a call of `generate` one for each token. The matrices of a pass
serve the next one too if it runs without gradients and every parameter has the version and the
place it had; from the second such pass on, W + B A is one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from operator import attrgetter, is_
from typing import Protocol, cast

import torch
from torch import Tensor

from vblora_lab.speed.backward import KeptMatrices, Key
from vblora_lab.speed.mixing import Matrices, autocast_dtype, mix_all
from vblora_lab.speed.one_input import OneInput

Fold = tuple[Tensor, Tensor | None]  # W + B A (out, in) and the bias of a layer
Place = tuple[Mapping[str, Tensor | None], str]  # what holds a parameter, and its key there

_version = attrgetter("_version")


class PooledLayer(Protocol):
    """What is asked of an adapted layer; `tuner.layer.VBLoRALayer` says what each gives."""

    topk: dict[str, int]
    name_in_pool: str
    mixed: dict[str, Matrices]  # by adapter: of the pass that is handed out, for compiled code

    @property
    def disable_adapters(self) -> bool: ...
    @property
    def merged(self) -> bool: ...
    def base_weight(self) -> Tensor: ...
    def logits(self, adapter: str, /) -> tuple[Tensor, Tensor]: ...
    def bank(self, adapter: str) -> Tensor: ...
    def places(self, adapter: str) -> list[Place]: ...
    def fold(self, matrices: Mapping[str, Matrices]) -> Fold | None: ...


Logits = Mapping[str, tuple[Tensor, Tensor]]  # by name of a layer
Layers = Mapping[str, Mapping[str, PooledLayer]]  # by adapter, then by name


class Pass:
    """One forward pass of a model: the matrices of all its layers, and what layers share beside.

    Args:
        layers: of the whole model.
        adapters: those that are mixed.

    Attributes:
        handed_out: whether layers hold its matrices, where compiled code looks for them.
    """

    def __init__(self, layers: Layers, adapters: Sequence[str]) -> None:
        self.matrices: dict[Key, Matrices] = {}
        self.autocast: torch.dtype | None = None  # as it was when they were mixed
        self.without_grad: set[Key] = set()  # see `backward.KeptMatrices`
        self.handed_out = False
        self.inputs = OneInput()
        for adapter in adapters:
            self._mix(layers[adapter], adapter)

    def _mix(self, layers: Mapping[str, PooledLayer], adapter: str) -> None:
        logits = {name: layer.logits(adapter) for name, layer in layers.items()}
        # A model may be spread over several devices: what can be mixed in one call lies on one.
        kinds = dict.fromkeys((A.device, A.dtype) for A, _ in logits.values())
        for device, dtype in kinds:
            group = logits if len(kinds) == 1 else _of(logits, device, dtype)
            first = layers[next(iter(group))]
            self.autocast = autocast_dtype(device)
            mixed = mix_all(
                list(group.values()),
                first.bank(adapter),
                first.topk[adapter],
                self.autocast or dtype,
            )
            self.matrices.update(zip(product((adapter,), group), mixed, strict=True))

    def get(self, key: Key, autocast: torch.dtype | None) -> Matrices | None:
        """The matrices of one layer, if there are any that it may use under this autocast."""
        matrices = self.matrices.get(key)
        if matrices is None or autocast != self.autocast:
            return None
        if matrices.A.requires_grad and not torch.is_grad_enabled():
            self.without_grad.add(key)
        return matrices

    def hand_out(self, layers: Layers) -> None:
        """Give each layer its matrices.

        Compiled code is made anew for each string that it reads, such as a layer's name, and not
        for each tensor: with its matrices at hand, one piece of code does for layers of one kind.
        """
        for (adapter, name), matrices in self.matrices.items():
            layers[adapter][name].mixed[adapter] = matrices
        self.handed_out = True

    def kept(self) -> KeptMatrices | None:
        """For layers that are called again in the backward pass; None if nothing is learned."""
        if not any(matrices.A.requires_grad for matrices in self.matrices.values()):
            return None
        return KeptMatrices(self.matrices, self.autocast, self.without_grad)

    def end(self) -> None:
        """Let go of inputs and outputs; the matrices may serve the next pass."""
        self.inputs.end()


def _of(logits: Logits, device: torch.device, dtype: torch.dtype) -> Logits:
    """Those of some layers, by name, that lie on one device in one dtype."""
    kind = device, dtype
    return {name: pair for name, pair in logits.items() if (pair[0].device, pair[0].dtype) == kind}


class HeldBlock:
    """The passes that one call makes in one thread.

    Args:
        layers: of the whole model.

    Attributes:
        current: the pass that runs now; None between two.
        latest: the last pass; its matrices serve the next one while `State` holds.
        folds: by name of a layer, W + B A and the bias, while they hold.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._state: State | None = None
        self._again = 0  # passes that used the matrices of an earlier one
        self.current: Pass | None = None
        self.latest: Pass | None = None
        self.folds: dict[str, Fold] = {}

    def begin_pass(self, adapters: Sequence[str], hand_out: bool) -> None:
        """Mix the matrices of these adapters, unless those of the pass before still hold.

        Args:
            adapters: that are in use.
            hand_out: whether layers are given matrices that are mixed now (see `Pass.hand_out`).
        """
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if self.latest is not None and self._state and self._state.holds(adapters):
                self.current = self.latest
                self._again += 1
                if self._again == 1:
                    self._fold(adapters, self.latest)
                return
            layers = ((layer, a) for a in adapters for layer in self._layers[a].values())
            self._state = State([p for layer, a in layers for p in layer.places(a)], adapters)
        else:
            self._state = None
        self.begin(Pass(self._layers, adapters))
        if hand_out and self.latest is not None:
            self.latest.hand_out(self._layers)

    def begin(self, its: Pass) -> None:
        """A pass that mixes anew."""
        self._again, self.folds = 0, {}
        self.current = self.latest = its

    def unfold(self) -> None:
        """Let go of folds, and of outputs that layers of this pass would get."""
        self.folds = {}
        if self.current is not None:
            self.current.inputs.end()

    def end_pass(self) -> None:
        if self.current is not None:
            self.current.end()
        self.current = None

    def end(self) -> None:
        """The call is over: layers let go of what they were given."""
        if self.latest is not None and self.latest.handed_out:
            self.latest.handed_out = False
            for adapter, name in self.latest.matrices:
                self._layers[adapter][name].mixed.clear()

    def _fold(self, adapters: Sequence[str], latest: Pass) -> None:
        """Add the updates to copies of the weights.

        A pass over one token spends its time on launching kernels; with W + B A in one matrix it
        launches no more of them than the base model. The base weights stay as they are. The sum
        is rounded to the weights' dtype, as in merging. Not done where the copies would take much
        memory.
        """
        by_name: dict[str, dict[str, Matrices]] = {}
        for (adapter, name), matrices in latest.matrices.items():
            by_name.setdefault(name, {})[adapter] = matrices
        layers = {name: layer for a in adapters for name, layer in self._layers[a].items()}
        weights = [layer.base_weight() for layer in layers.values()]
        if not weights or sum(weight.nbytes for weight in weights) > spare_bytes(weights[0].device):
            return
        for name, layer in layers.items():
            folded = layer.fold(by_name.get(name, {}))
            if folded is not None:
                self.folds[name] = folded


class State:
    """Of all that matrices and folds are made of, where it is and which version it has.

    (A write in place through `.data`, from within `generate` itself, leaves no version behind; it
    is seen by the next call.)

    Args:
        places: of all parameters.
        setting: what else must be equal, such as the names of the adapters.
    """

    def __init__(self, places: Sequence[Place], setting: Sequence[object]) -> None:
        self._setting = list(setting)
        self._dicts = [cast(dict[str, Tensor | None], holder) for holder, _ in places]
        self._keys = [key for _, key in places]
        self._tensors = [cast(Tensor, holder[key]) for holder, key in places]
        self._seen = self._look()

    def holds(self, setting: Sequence[object]) -> bool:
        """Whether nothing was changed in place, moved, or put in another's place since."""
        # Asked once per token, of hundreds of parameters: `map` is several times a loop's speed.
        there = map(dict.get, self._dicts, self._keys)
        same = all(map(is_, there, self._tensors))
        return same and list(setting) == self._setting and self._look() == self._seen

    def _look(self) -> tuple[object, ...]:
        tensors = self._tensors
        autocast = autocast_dtype(tensors[0].device) if tensors else None
        # Tensors made under inference_mode count no versions.
        counted = [tensor for tensor in tensors if not tensor.is_inference()]
        places, versions = map(Tensor.data_ptr, tensors), map(_version, counted)
        return torch.is_inference_mode_enabled(), autocast, *places, *versions


def spare_bytes(device: torch.device) -> int:
    """Bytes that copies of weights may take."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**28
