"""A bank of live adapters on a model: thousands in memory, loaded on demand, none in a module.

    live = LiveAdapters(model, source, capacity=256 * 2**20)
    model.generate(**inputs, adapter_names=["user-17", "user-4", "__base__"])

PEFT gives every adapter parameters in every layer, so adding one costs more the more there are.
Live adapters are their choices of bank vectors (see `live_choices`): two tensors each, in one
dictionary. Adding, swapping and dropping one takes the same time with 1 or 10,000 there and
touches no module, so a model that is compiled or in use stays as it is.

Choices never change. A batch that runs keeps those that it began with, whatever is swapped or
dropped meanwhile, and any number of threads may run batches, add and drop.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor

from vblora_lab.errors import CheckpointError, ConfigError, TargetError, did_you_mean
from vblora_lab.serving.live_choices import Choices, LiveGroup, choices_of, grouped
from vblora_lab.serving.live_memory import Memory
from vblora_lab.tuner import formats
from vblora_lab.tuner.adapted import features
from vblora_lab.tuner.banks import fingerprint
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import VBLoRALayer
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.modules import own_modules
from vblora_lab.tuner.targets import resolve

Stored = tuple[Mapping[str, Tensor], VBLoRAConfig]


class Source(Protocol):
    """Where adapters come from: a mapping from names to (tensors of the file, config).

    The tensors have PEFT's keys, in either format, the bank among them. `AdapterStore.stored` is
    one.
    """

    def __contains__(self, name: object) -> bool: ...
    def __getitem__(self, name: str) -> Stored: ...


class _Lease:
    """The adapters that a batch needs. One that an interrupt keeps from ending is forgotten."""

    def __init__(self) -> None:
        self.held: dict[str, Choices] = {}


class LiveAdapters:
    """Adapters that mixed batches of one model may name, beside those that PEFT holds.

    Iterating gives the names of those in memory: the pinned ones, then the others, the least
    recently used first. `name in live` is true of the source's as well, which can be loaded.

    Args:
        model: a PeftModel made by this package. Its layers are those that live adapters may adapt,
            all of them or some.
        source: where a name is looked up that isn't in memory.
        capacity: bytes that adapters and their banks may take in memory. When there is no room for
            one more, those go that were used least recently, but none that is pinned or that a
            batch uses right now.

    Attributes:
        loaded: how many adapters came from the source so far.

    Raises:
        TargetError: the model wasn't made by this package.
        ConfigError: it has live adapters already, or capacity isn't a positive number.
    """

    def __init__(self, model: PeftModel, source: Source | None = None, *, capacity: int) -> None:
        tuner = getattr(model, "base_model", None)
        if not isinstance(tuner, VBLoRAModel):
            raise TargetError(f"model is a {type(model).__name__}, not one made by vblora_lab.")
        if not isinstance(capacity, int) or capacity <= 0:
            raise ConfigError(f"capacity={capacity!r}: must be a number of bytes, such as 2**28.")
        if tuner.pool.live is not None:
            raise ConfigError("model: has live adapters already; add to those, or close() them.")
        self.source = source
        self.loaded = 0
        self._tuner = tuner
        modules = own_modules(tuner.model)
        self._layers = {n: m for n, m in modules.items() if isinstance(m, VBLoRALayer)}
        self._memory = Memory(capacity)
        self._banks: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()
        self._features: dict[str, dict[str, tuple[int, int]]] = {}  # by what a config targets
        self._lock = threading.RLock()
        self._loading: dict[str, Future[None]] = {}
        self._leases: weakref.WeakSet[_Lease] = weakref.WeakSet()
        tuner.pool.live = self

    def close(self) -> None:
        """Let go of all adapters; the model goes on with those that PEFT holds."""
        with self._lock:
            self._memory = Memory(self._memory.capacity)
            if self._tuner.pool.live is self:
                self._tuner.pool.live = None

    # --- what is there

    def __contains__(self, name: object) -> bool:
        return name in self._memory or (self.source is not None and name in self.source)

    def __len__(self) -> int:
        return len(self._memory)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(self._memory)

    @property
    def nbytes(self) -> int:
        """Bytes that adapters and banks take in memory."""
        return self._memory.nbytes

    @property
    def capacity(self) -> int:
        """Bytes that they may take."""
        return self._memory.capacity

    @property
    def evicted(self) -> int:
        """How many went so far to make room."""
        return self._memory.evicted

    @property
    def pinned(self) -> frozenset[str]:
        """Names of those that stay until they are dropped."""
        with self._lock:
            return self._memory.pinned

    # --- adding, swapping, dropping

    def add(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        config: VBLoRAConfig,
        *,
        replace: bool = False,
        pin: bool = False,
    ) -> None:
        """Put an adapter into memory, or swap it for another of its name.

        Args:
            name: to use in adapter_names.
            tensors: as in PEFT's files, in either format; with the bank, unless it is replaced by
                one with the same bank.
            config: of the adapter. Biases and modules_to_save can't be live.
            replace: whether one of that name may be there. Batches that run keep the old one.
            pin: whether it stays until it is dropped.

        Raises:
            ConfigError: the name is taken, or there is no room.
            CheckpointError, TargetError: it doesn't fit the model. What was there is there still.
        """
        if name in self._tuner.peft_config:
            raise ConfigError(f"name={name!r}: is an adapter that PEFT holds in this model.")
        choices = self._choices(name, tensors, config)
        with self._lock:
            if name in self._memory and not replace:
                raise ConfigError(
                    f"name={name!r}: is live already; give replace=True, or another name."
                )
            self._put(name, choices)
            if pin:
                self._memory.pin(name)

    def drop(self, name: str) -> None:
        """Let go of an adapter. A batch that uses it goes on with it.

        Raises:
            ConfigError: it isn't in memory.
        """
        with self._lock:
            self._check_held(name)
            self._memory.drop(name)

    def pin(self, name: str) -> None:
        """Keep an adapter in memory until it is dropped or unpinned; loads it if need be.

        Raises:
            ConfigError: there is no such adapter, or no room.
        """
        with self.held([name]), self._lock:
            self._memory.pin(name)

    def unpin(self, name: str) -> None:
        """Let an adapter go when room is needed.

        Raises:
            ConfigError: it isn't in memory.
        """
        with self._lock:
            self._check_held(name)
            self._memory.unpin(name)

    # --- for mixed batches

    def layers(self) -> Mapping[str, VBLoRALayer]:
        """The layers of the model that adapters may adapt, by name."""
        return self._layers

    @contextmanager
    def held(self, names: Sequence[str]) -> Iterator[Sequence[LiveGroup]]:
        """Within, these adapters are in memory: groups of them, for `speed.rows.RowBatch`.

        Raises:
            ConfigError: there is no room for all of them at once.
            CheckpointError, TargetError: one from the source doesn't fit the model.
        """
        lease = _Lease()
        self._leases.add(lease)
        try:
            for name in names:
                self._take(name, lease)
            yield list(grouped(lease.held))
        finally:
            self._leases.discard(lease)

    def _take(self, name: str, lease: _Lease) -> None:
        while name not in lease.held:
            mine: Future[None] = Future()
            try:
                with self._lock:
                    there = self._memory.use(name)
                    if there is not None:
                        lease.held[name] = there
                        return
                    first = self._loading.get(name)
                    if first is None or first.done():
                        first = self._loading[name] = mine
                if first is mine:
                    self._load(name, lease)
            finally:
                mine.set_result(None)  # whatever was raised, nobody waits for this thread
                if self._loading.get(name) is mine:
                    self._loading.pop(name, None)
            first.result()  # another thread loads it, or fails: then it is looked for anew

    def _load(self, name: str, lease: _Lease) -> None:
        if self.source is None or name not in self.source:
            hint = did_you_mean(name, self._memory)
            raise ConfigError(f"adapter_names: no live adapter is called {name!r}.{hint}")
        choices = self._choices(name, *self.source[name])
        with self._lock:
            self._put(name, choices)
            lease.held[name] = choices
            self.loaded += 1

    def _put(self, name: str, choices: Choices) -> None:
        in_use = set().union(*(lease.held for lease in self._leases))
        self._memory.put(name, choices, in_use)

    def _check_held(self, name: str) -> None:
        if name not in self._memory:
            hint = did_you_mean(name, self._memory)
            raise ConfigError(f"name={name!r}: is not in memory.{hint}")

    # --- from a file to choices

    def _choices(self, name: str, tensors: Mapping[str, Tensor], config: VBLoRAConfig) -> Choices:
        where = f"adapter {name!r}"
        if config.bias != "none" or config.modules_to_save:
            raise ConfigError(
                f"{where} has bias={config.bias!r} and modules_to_save={config.modules_to_save}: "
                "a live adapter has logits alone. Add it with load_adapter."
            )
        if formats.BANK_KEY not in tensors:
            raise CheckpointError(f"{where}: its bank ({formats.BANK_KEY}) is missing.")
        sizes = self._features_of(config)
        formats.check_shapes(tensors, config, sizes, {}, (), where)
        bank = self._bank(tensors[formats.BANK_KEY], f"{where}: {formats.BANK_KEY}")
        return choices_of(tensors, config, sizes, bank, where)

    def _features_of(self, config: VBLoRAConfig) -> dict[str, tuple[int, int]]:
        """Of the layers that a config adapts; searched for once for all configs that adapt them."""
        key = repr(sorted((k, str(v)) for k, v in vars(config).items() if k in _TARGETING))
        found = self._features.get(key)
        if found is None:
            _, targets = resolve(self._tuner.model, config)
            missing = [name for name in targets if name not in self._layers]
            if missing:
                raise TargetError(
                    f"target_modules={config.target_modules!r}: this model's adapters leave out "
                    f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}. Make "
                    "the model with a config that adapts all layers that a live adapter may."
                )
            found = self._features[key] = features(targets)
        return found

    def _bank(self, numbers: Tensor, where: str) -> Tensor:
        """The bank on the model's device, one for all adapters that have it."""
        key = fingerprint(numbers)
        with self._lock:
            bank = self._banks.get(key)
            if bank is None:
                formats.check_numbers(numbers, where, are_logits=False)
                first = next(iter(self._layers.values()))
                dtype = torch.promote_types(numbers.dtype, torch.float32)
                bank = numbers.detach().to(first.base_weight().device, dtype, copy=True)
                self._banks[key] = bank
            return bank


_TARGETING = {
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "vector_length",
    "task_type",
    "fan_in_fan_out",
}
