"""The adapted layers of a model: which they are, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from vblora_lab.speed.pool import MatrixPool
from vblora_lab.tuner.layer import VBLoRALayer
from vblora_lab.tuner.wrapped import LinearLayer, in_out_features


def adapted_layers(model: nn.Module, adapter_name: str = "default") -> dict[str, VBLoRALayer]:
    """The layers that carry an adapter, by their names in the base model, in its order.

    Args:
        model: a PeftModel, a tuner, or a base model with adapted layers; compiled or not.
        adapter_name: which adapter.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    if isinstance(model, PeftModel):
        model = model.base_model
    if isinstance(model, BaseTuner):
        pool = getattr(model, "pool", None)
        if isinstance(pool, MatrixPool) and adapter_name in pool.layers:  # no need to search
            return cast(dict[str, VBLoRALayer], dict(pool.layers[adapter_name]))
        model = model.model
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, VBLoRALayer) and module.has_adapter(adapter_name)
    }


def features(layers: Mapping[str, VBLoRALayer | LinearLayer]) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of each layer, adapted or not, by name."""
    return {
        name: in_out_features(layer.get_base_layer() if isinstance(layer, VBLoRALayer) else layer)
        for name, layer in layers.items()
    }
