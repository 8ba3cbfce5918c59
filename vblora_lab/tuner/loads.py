"""PEFT's own ways to load and to save an adapter, which leave nothing behind if they fail.

PEFT injects an adapter, then reads its file: if that fails, an adapter of random numbers stays in
the model. When it saves one, its config says for a moment that it is for inference. While PEFT uses
this package's classes (see `seam`), these functions stand in for PeftModel's methods; adapters of
other methods go through them untouched. They read files in 8 bits too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from vblora_lab.errors import CheckpointError
from vblora_lab.tuner.folders import as_peft_stores
from vblora_lab.tuner.injection import restored_on_error
from vblora_lab.tuner.layer import VBLoRALayer
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.sharded import whole

_from_pretrained = PeftModel.__dict__["from_pretrained"].__func__
_load_adapter = PeftModel.load_adapter
_save_pretrained = PeftModel.save_pretrained


@functools.wraps(_from_pretrained)
def from_pretrained(
    cls: type[PeftModel],
    model: nn.Module,
    model_id: Any,
    adapter_name: str = "default",
    *args: Any,
    **kwargs: Any,
) -> PeftModel:
    if not isinstance(model, nn.Module):
        return _from_pretrained(cls, model, model_id, adapter_name, *args, **kwargs)
    with restored_on_error(model, adapter_name), _as_peft_stores(model_id, kwargs) as stored:
        return _from_pretrained(cls, model, stored, adapter_name, *args, **kwargs)


@functools.wraps(_load_adapter)
def load_adapter(
    self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any
) -> Any:
    if not isinstance(self.base_model, VBLoRAModel):
        return _load_adapter(self, model_id, adapter_name, *args, **kwargs)
    is_there = adapter_name in self.peft_config
    safe = numbers_restored_on_error if is_there else restored_on_error
    with safe(self.base_model.model, adapter_name), _as_peft_stores(model_id, kwargs) as stored:
        try:
            return _load_adapter(self, stored, adapter_name, *args, **kwargs)
        except KeyError as error:  # PEFT's, for what modules_to_save names
            raise CheckpointError(
                f"{model_id} doesn't fit this model: {error.args[0]} is missing. Was it made with "
                "another config?"
            ) from error


def _as_peft_stores(model_id: Any, kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
    if not isinstance(model_id, (str, os.PathLike)):
        return nullcontext(model_id)  # PEFT says what is wrong with it
    return as_peft_stores(model_id, kwargs.get("subfolder") or "")


@functools.wraps(_save_pretrained)
def save_pretrained(self: PeftModel, *args: Any, **kwargs: Any) -> None:
    modes = [(config, config.inference_mode) for config in self.peft_config.values()]
    # A state dict that is given was gathered, maybe by a process that alone goes on from there.
    given = kwargs.get("state_dict") is not None
    try:
        with nullcontext() if given else whole(self):
            _save_pretrained(self, *args, **kwargs)
    finally:
        for config, inference_mode in modes:
            config.inference_mode = inference_mode


@contextmanager
def numbers_restored_on_error(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """If the block fails, give every tensor of a model the numbers and the place it had.

    Copies are kept of what can be trained or is an adapter's; a load leaves the rest alone.
    """
    places = [(module, dict(module._parameters)) for module in model.modules()]
    complete = [
        (module.logits_are_complete, dict(module.logits_are_complete))
        for module in model.modules()
        if isinstance(module, VBLoRALayer)
    ]
    copies = [
        (parameter, parameter.detach().clone())
        for name, parameter in model.named_parameters()
        if not parameter.is_meta
        and (parameter.requires_grad or name.endswith("bias") or f".{adapter_name}" in name)
    ]
    try:
        yield
    except BaseException:
        for module, parameters in places:
            module._parameters.update(parameters)
        with torch.no_grad():
            for parameter, numbers in copies:
                parameter.copy_(numbers)
        for held, before in complete:
            held.update(before)
        raise
