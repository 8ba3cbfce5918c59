"""All layers are merged, or none: what is checked before, and taken back after a failure."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import cast

from peft.tuners.tuners_utils import onload_layer
from torch import nn

from vblora_lab.errors import MergeError
from vblora_lab.tuner.layer import Linear


def check_mergeable(
    model: nn.Module, adapter_names: list[str] | None = None, safe_merge: bool = False
) -> None:
    """Find before the first merge what would stop a later one, or give a wrong result.

    Args:
        model: the adapted base model.
        adapter_names: which adapters are to be merged; the active ones if not given.
        safe_merge: compute every merged weight, and refuse one that isn't finite.

    Raises:
        MergeError: names the layer, and says what to do.
    """
    layers = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, Linear) and layer.adapters_to_merge(adapter_names)
    }
    for path, layer in layers.items():
        if reason := layer.why_not_mergeable():
            raise MergeError(f"can't merge into {path}: {reason}")
    _check_untied(model, layers)
    if safe_merge:
        for path, layer in layers.items():
            try:
                with onload_layer(layer):  # accelerate may have put the weight aside
                    layer.merged_weight(adapter_names, safe_merge=True)
            except MergeError as error:
                raise MergeError(f"{path}: {error}") from error


@contextmanager
def merges_restored_on_error(model: nn.Module) -> Iterator[None]:
    """If the block fails, give each layer the base weight and the merged adapters it had.

    Args:
        model: the adapted base model.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    states = [layer.merge_state() for layer in layers]
    try:
        yield
    except BaseException:
        for layer, state in zip(layers, states, strict=True):
            layer.restore_merge(state)
            layer.pool.unfold()
        raise


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C, or a kernel's stop button, wait until the block is done.

    For what gives up old weights as it goes, and so can't be taken back. Signals reach the main
    thread alone: elsewhere there is nothing to hold off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[tuple[int, FrameType | None]] = []
    handler = signal.signal(signal.SIGINT, lambda *signalled: asked.append(signalled))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if asked and callable(handler):
        handler(*asked[0])


def _check_untied(model: nn.Module, layers: Mapping[str, Linear]) -> None:
    """Raise `MergeError` if merging into these layers would change what other modules compute."""
    layer_of = {layer.base_weight(): layer for layer in layers.values()}
    path_of = {layer: path for path, layer in layers.items()}
    if len(layer_of) < len(layers):
        shared = next(la for la in layers.values() if layer_of[la.base_weight()] is not la)
        raise _tied(path_of[shared], path_of[layer_of[shared.base_weight()]])
    # A module may have several names; the base layer is reached through its adapter under each.
    every = list(model.named_modules(remove_duplicate=False))
    within = {layer: tuple(f"{path}." for path, m in every if m is layer) for layer in path_of}
    for path, module in every:
        for parameter in module.parameters(recurse=False):
            layer = layer_of.get(cast(nn.Parameter, parameter))
            if layer is not None and not path.startswith(within[layer]):
                raise _tied(path_of[layer], path)


def _tied(layer: str, other: str) -> MergeError:
    return MergeError(
        f"can't merge into {layer}: {other.removesuffix('.base_layer')} uses the same weight, and "
        "would change with it. Keep the adapter unmerged, or untie the two in the base model "
        f"before adapting it: {layer}.weight = nn.Parameter({layer}.weight.detach().clone()), and "
        "config.tie_word_embeddings = False where the config says True."
    )
