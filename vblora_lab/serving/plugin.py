"""vLLM serves the adapters of a store by name: each is made a LoRA when it is first asked for.

vLLM finds `register` by the entry point `vllm.general_plugins` of this package and calls it in each
of its processes. It does nothing unless VBLORA_LAB_STORE names a store. For a model that it doesn't
know by name, vLLM then asks `StoreResolver`, if VLLM_ALLOW_RUNTIME_LORA_UPDATING is set:

    VBLORA_LAB_STORE=store VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora

VBLORA_LAB_LORA_CACHE names the folder that LoRA adapters are kept in, which is also good for the
next start, and VBLORA_LAB_LORA_CACHE_BYTES how large it may become.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import nn

from vblora_lab.bases.cache import cache_folder
from vblora_lab.bases.skeleton import load_skeleton
from vblora_lab.errors import (
    BaseModelError,
    CheckpointError,
    ConfigError,
    StoreError,
    TargetError,
    UnknownAdapterError,
)
from vblora_lab.serving.plugin_cache import LoRACache
from vblora_lab.serving.store import AdapterStore
from vblora_lab.serving.store_adapter import Opened
from vblora_lab.tuner.formats import BANK_KEY
from vblora_lab.tuner.loading import check_fits

STORE, CACHE = "VBLORA_LAB_STORE", "VBLORA_LAB_LORA_CACHE"
CACHE_BYTES = "VBLORA_LAB_LORA_CACHE_BYTES"
DEFAULT_CACHE_BYTES = 16 * 2**30
NAME = "vblora_lab"  # of the resolver, in vLLM's list


class Resolved(NamedTuple):
    """A LoRA for an engine: its folder, and a positive number that is its own."""

    path: Path
    number: int


class StoreResolver:
    """Adapters of a store as LoRA adapters, for an engine that asks by name.

    Conversions run one after the other in a thread, so that an event loop goes on meanwhile and
    requests that come together for one name cause one conversion.

    Args:
        store: that the adapters are in.
        cache: the folder that LoRA adapters are kept in.
        limit: see `LoRACache`.
    """

    def __init__(self, store: AdapterStore, cache: Path, limit: int) -> None:
        self._store = store
        self._cache_arguments = cache, limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vblora-lab-lora")
        self._bases: dict[str, nn.Module | None] = {}

    @cached_property
    def _cache(self) -> LoRACache:
        """Made when it is first needed: most processes of an engine never ask."""
        return LoRACache(*self._cache_arguments)

    async def resolve(self, base: str, name: str) -> Resolved | None:
        """The LoRA for an adapter, None if the store has none of that name.

        Args:
            base: the model that is served: a folder, or a name on the Hub.
            name: of the adapter.

        Raises:
            VBLoRAError: it can't be served. The message says why; the engine gives it to the client
                whose request it was.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._resolve, base, name)

    def _resolve(self, base: str, name: str) -> Resolved | None:
        adapter = self._store.get(name)
        if adapter is None:
            return None
        try:
            path = self._cache.find(name, adapter.digest) or self._converted(base, name)
        except UnknownAdapterError:  # removed just now
            return None
        except OSError as error:
            raise StoreError(f"adapter {name!r} can't be read or converted: {error}") from error
        return Resolved(path, number_of(path.name))

    def _converted(self, base: str, name: str) -> Path:
        opened = self._store.read(name)
        self._check(opened, base)
        return self._cache.add(opened)

    def _check(self, opened: Opened, base: str) -> None:
        """Raise for an adapter that an engine would refuse, or take and serve another answer."""
        name, config = opened.adapter.name, opened.config
        if config.modules_to_save:
            raise ConfigError(
                f"adapter {name!r}: has modules_to_save={sorted(config.modules_to_save)}, whole "
                "modules of its own. Engines that serve LoRA exchange matrices A and B alone; "
                "serve it merged into its base model."
            )
        if config.bias != "none":
            raise ConfigError(
                f"adapter {name!r}: has bias={config.bias!r}, biases of its own. Engines that "
                "serve LoRA exchange matrices A and B alone; serve it merged into its base model."
            )
        if base not in self._bases:
            self._bases[base] = _skeleton(base)
        model = self._bases[base]
        if model is not None:
            tensors = {key: t for key, t in opened.tensors.items() if key != BANK_KEY}
            try:
                check_fits(model, config, tensors, f"adapter {name!r}")
            except TargetError as error:
                raise CheckpointError(
                    f"adapter {name!r} doesn't fit this model: {error}"
                ) from error


def _skeleton(base: str) -> nn.Module | None:
    """The served model without weights; None for one whose code only the engine has."""
    try:
        return load_skeleton(base)
    except BaseModelError as error:
        logging.getLogger(__name__).warning(
            "Adapters aren't checked against the model before they are served: %s", error
        )
        return None


def number_of(digest: str) -> int:
    """A positive number of 60 bits that stands for a digest: the same in every process."""
    return int(digest[:15], 16) + 1


def register() -> None:
    """Let vLLM ask for adapters of the store that VBLORA_LAB_STORE names.

    Raises:
        StoreError: there is no store.
    """
    place = os.environ.get(STORE)
    if not place:
        return
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    store = AdapterStore(place, create=False)
    cache = os.environ.get(CACHE)
    limit = os.environ.get(CACHE_BYTES, str(DEFAULT_CACHE_BYTES))
    if not limit.isdecimal():
        raise StoreError(f"{CACHE_BYTES}={limit!r}: must be a whole number of bytes.")
    resolver = StoreResolver(store, Path(cache) if cache else cache_folder() / "lora", int(limit))

    class VBLoRAResolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            resolved = await resolver.resolve(base_model_name, lora_name)
            if resolved is None:
                return None
            return LoRARequest(
                lora_name=lora_name, lora_int_id=resolved.number, lora_path=str(resolved.path)
            )

    LoRAResolverRegistry.register_resolver(NAME, VBLoRAResolver())
