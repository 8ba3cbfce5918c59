"""What a training pass keeps for its backward pass, counted on tensors without memory.

The pass is run on a copy of the model whose tensors are "fake" (PyTorch's FakeTensorMode): shapes
and dtypes are computed, numbers aren't. Whatever autograd saves on the way is counted, each piece
of memory once, without the parameters, which are there anyway. So this is no formula for one kind
of transformer; it holds for any model that the pass can be run on.
"""

from __future__ import annotations

import copy
import warnings
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model


def activation_bytes(model: nn.Module, config: VBLoRAConfig, batch_size: int, length: int) -> int:
    """Bytes that one training pass of the adapted model keeps for its backward pass.

    In the dtype of the weights: without autocast, without gradient checkpointing, on the CPU's
    kernels (others may keep a little more or less). The loss is the model's own, for every token,
    where it predicts tokens. Memory that single operations take in passing comes on top.

    Args:
        model: the base model, on any device, "meta" too; never changed.
        config: of an adapter that fits it.
        batch_size, length: of the input ids, (batch_size, length).

    Raises:
        ConfigError: batch_size or length isn't a whole number of 1 or more.
        TargetError: no transformers model, or one that can't be run so (as OPT in older
            transformers, 5.17 still, which ask its mask for values).
    """
    for name, value in (("batch_size", batch_size), ("length", length)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}={value!r}: must be a whole number, at least 1.", field=name)
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise TargetError(
            f"activations of a {kind} can't be counted: it is no model of transformers, so what to "
            "put into it isn't known; leave batch_size and length out."
        )
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `plan` itself warns of the model
        adapted = get_peft_model(_fake_copy(model), config).train()
        try:
            return _saved_bytes(adapted, torch.zeros(batch_size, length, dtype=torch.long))
        except Exception as error:  # whatever a model's own code raises
            raise TargetError(
                f"activations of {kind} for {batch_size} x {length} tokens can't be counted: "
                f"{type(error).__name__}: {error}"
            ) from error


def _fake_copy(model: nn.Module) -> nn.Module:
    """The model with fake tensors in place of its parameters and buffers."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        fake = torch.empty(parameter.shape, dtype=parameter.dtype)
        memo[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(model, memo)


def _saved_bytes(model: PeftModel, tokens: Tensor) -> int:
    own = {_memory(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if _memory(tensor) not in own:
            saved[_memory(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    base = cast(PreTrainedModel, model.get_base_model())
    predicts_tokens = base.get_output_embeddings() is not None
    labels = {"labels": tokens} if predicts_tokens else {}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(input_ids=tokens, **labels)
    assert output is not None  # alive until here, so no piece of memory was given out twice
    return sum(saved.values())


def _memory(tensor: Tensor) -> int:
    """Identifies the piece of memory that a tensor, or a view of it, lies in."""
    return int(tensor.untyped_storage()._cdata)
