"""A batch whose samples are for different adapters: `model(**inputs, adapter_names=[...])`.

The adapters are those of the model, and those that are live on it (see `serving.live`). Here they
are looked up and grouped; `speed.rows` says how they are mixed and applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from vblora_lab.errors import ConfigError
from vblora_lab.speed.blocks import Place
from vblora_lab.speed.mixing import mix_all
from vblora_lab.speed.pool import MatrixPool
from vblora_lab.speed.rows import LiveAdapters, RowBatch, RowGroup, RowLayer
from vblora_lab.tuner.layer import NO_ADAPTER, VBLoRALayer
from vblora_lab.tuner.modules import own_modules
from vblora_lab.tuner.wrapped import adapter_dtype, device_of


class GroupInModel:
    """Adapters of a model that share a bank, a rank, topk and the names of their layers.

    Args:
        names: of the adapters.
        layers: those that carry them, by name.
    """

    def __init__(self, names: Sequence[str], layers: Mapping[str, VBLoRALayer]) -> None:
        self.names, self.layers = names, layers

    def places(self) -> list[Place]:
        """Where the logits and the bank are kept."""
        layers = list(self.layers.values())
        banks: list[Place] = [(layers[0].vblora_vector_bank._parameters, self.names[0])]
        logits = [
            side for layer in layers for side in (layer.vblora_logits_A, layer.vblora_logits_B)
        ]
        return banks + [(side._parameters, name) for name in self.names for side in logits]

    def mix(self, layers: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        """(adapters, r, columns): for each of these layers its columns of A, then of B_T."""
        first, name = self.layers[layers[0]], self.names[0]
        logits = [
            (layer.vblora_logits_A._parameters[name], layer.vblora_logits_B._parameters[name])
            for name in self.names
            for layer in (self.layers[each] for each in layers)
        ]
        pairs = cast(list[tuple[Tensor, Tensor]], logits)
        mixed = mix_all(pairs, first.bank(name), first.topk[name], dtype)
        wide = torch.cat([part for matrices in mixed for part in matrices], dim=1)
        return wide.view(len(wide), len(self.names), -1).transpose(0, 1).to(device)


@contextmanager
def mixed_batch(tuner: BaseTuner, adapter_names: Sequence[str]) -> Iterator[None]:
    """Within, each sample of the model's input has its own adapter.

    Args:
        tuner: a `VBLoRAModel`.
        adapter_names: one adapter, or "__base__", per sample.

    Raises:
        ConfigError: in training mode, while merged, or for an adapter that isn't there.
    """
    pool, modules = cast(MatrixPool, tuner.pool), own_modules(tuner.model)
    layers = {name: m for name, m in modules.items() if isinstance(m, VBLoRALayer)}
    _check(tuner, adapter_names, layers, pool.live)
    wanted = dict.fromkeys(name for name in adapter_names if name != NO_ADAPTER)
    in_model = [name for name in wanted if name in tuner.peft_config]
    live = [name for name in wanted if name not in tuner.peft_config]
    held: AbstractContextManager[Sequence[RowGroup]] = nullcontext(())
    if pool.live is not None and live:
        held = pool.live.held(live)
    with held as live_groups:
        groups: list[RowGroup] = [*_groups(in_model, pool), *live_groups]
        sizes = {name: _row_layer(layer) for name, layer in layers.items()}
        copies = [m for m in modules.values() if isinstance(m, AuxiliaryTrainingWrapper)]
        of_rows = [None if name == NO_ADAPTER else name for name in adapter_names]
        with pool.batch(RowBatch(of_rows, groups, sizes)), _told(copies, adapter_names, pool):
            yield


def _check(
    tuner: BaseTuner,
    adapter_names: Sequence[str],
    layers: Mapping[str, VBLoRALayer],
    live: LiveAdapters | None,
) -> None:
    if tuner.training:
        raise ConfigError("adapter_names: a mixed batch is for inference; call model.eval().")
    if any(layer.merged for layer in layers.values()):
        raise ConfigError("adapter_names: adapters are merged; call unmerge_adapter() first.")
    if not adapter_names:
        raise ConfigError(
            f"adapter_names=[]: must name an adapter, or {NO_ADAPTER!r}, for each sample."
        )
    others = set(adapter_names) - {NO_ADAPTER, *tuner.peft_config}
    unknown = sorted(name for name in others if live is None or name not in live)
    if unknown:
        also = "" if live is None else ", those that are live or in their source,"
        raise ConfigError(
            f"adapter_names: no adapter is called {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, tuner.peft_config))}{also} and {NO_ADAPTER!r} for none."
        )


def _groups(names: Sequence[str], pool: MatrixPool) -> list[GroupInModel]:
    """Adapters of the model, as few groups as one admixture each can serve."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        layers = cast(Mapping[str, VBLoRALayer], pool.layers[name])
        first = next(iter(layers.values()))
        logits = first.vblora_logits_A[name]
        kind = (id(first.vblora_vector_bank[name]), first.r[name], first.topk[name], logits.dtype)
        alike.setdefault((*kind, *layers), []).append(name)
    return [
        GroupInModel(group, cast(Mapping[str, VBLoRALayer], pool.layers[group[0]]))
        for group in alike.values()
    ]


def _row_layer(layer: VBLoRALayer) -> RowLayer:
    # A half-precision model has its updates added in half precision, as when they are folded into
    # its weights, since products in float32 would take a multiple of the time.
    dtype = adapter_dtype(layer.base_weight().dtype, autocast_adapter_dtype=False)
    device = device_of(layer.get_base_layer())
    return RowLayer(layer.in_features, layer.out_features, device, dtype)


@contextmanager
def _told(
    copies: Sequence[nn.Module], adapter_names: Sequence[str], pool: MatrixPool
) -> Iterator[None]:
    """Within, copies of modules_to_save know which adapter each row of their input is for."""
    hook = partial(_tell, adapter_names, pool, pool.row_batch())
    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in copies]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tell(
    names: Sequence[str],
    pool: MatrixPool,
    batch: RowBatch | None,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if batch is None or pool.row_batch() is not batch:  # another thread's call
        return None
    rows = args[0].shape[0]
    batch.check_rows(rows)
    repeated = [name for name in names for _ in range(rows // len(names))]
    if isinstance(module, ModulesToSaveWrapper):  # of which each adapter may have a copy or none
        repeated = [n if n in module.modules_to_save else NO_ADAPTER for n in repeated]
    return args, {**kwargs, "adapter_names": repeated}
