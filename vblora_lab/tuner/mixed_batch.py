"""A batch whose samples are for different adapters: `model(**inputs, adapter_names=[...])`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from vblora_lab.errors import ConfigError
from vblora_lab.tuner.layer import NO_ADAPTER, VBLoRALayer


def check_mixed_batch(tuner: BaseTuner, adapter_names: Sequence[str]) -> None:
    """Raise `ConfigError` in training mode, while merged, or for an adapter that isn't there."""
    if tuner.training:
        raise ConfigError("adapter_names: a mixed batch is for inference; call model.eval().")
    if any(layer.merged for layer in tuner.modules() if isinstance(layer, VBLoRALayer)):
        raise ConfigError("adapter_names: adapters are merged; call unmerge_adapter() first.")
    unknown = sorted(set(adapter_names) - {NO_ADAPTER, *tuner.peft_config})
    if unknown:
        raise ConfigError(
            f"adapter_names: no adapter is called {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, tuner.peft_config))}, and {NO_ADAPTER!r} for none."
        )


@contextmanager
def adapter_per_row(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """Within, every layer knows which adapter each row of its input is for.

    Args:
        model: has the adapted layers.
        adapter_names: one adapter, or "__base__", per sample.
    """
    hook = partial(_tell_layer, list(adapter_names))
    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, (VBLoRALayer, AuxiliaryTrainingWrapper))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tell_layer(
    names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rows = args[0].shape[0]
    if rows % len(names):
        raise ConfigError(f"adapter_names: {len(names)} names for a batch of {rows} samples.")
    # Beam search repeats each sample, and some models flatten (batch, length) into rows: either
    # way the rows of one sample stay together.
    repeated = [name for name in names for _ in range(rows // len(names))]
    if isinstance(module, ModulesToSaveWrapper):  # of which each adapter may have a copy or none
        repeated = [n if n in module.modules_to_save else NO_ADAPTER for n in repeated]
    return args, {**kwargs, "adapter_names": repeated}
