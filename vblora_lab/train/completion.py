"""Logits only where there is something to predict.

The logits of OPT-125m are 50,272 numbers per token, more than everything else in a training step
at 4 x 64 tokens. The loss reads those of the completion alone, so the rest need not be made.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from vblora_lab.train.prompts import IGNORED


@contextlib.contextmanager
def completion_logits(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside the block, calls with labels make the logits of completion columns alone.

    The loss is the same. Logits are (batch, columns, vocabulary), for the columns of the batch in
    which any row has a next token to predict. Calls without labels are not changed; nor are those
    on a GPU, where Python would have to wait for the device to know the columns, nor those of
    models that can't leave logits out.
    """
    causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
    if causal_lm.device.type != "cpu" or not _can_leave_out(causal_lm):
        yield
        return
    # The first of the hooks, so that others see the arguments as the model will see them.
    hook = causal_lm.register_forward_pre_hook(_narrow, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _can_leave_out(causal_lm: nn.Module) -> bool:
    return (
        "logits_to_keep" in inspect.signature(causal_lm.forward).parameters
        and getattr(causal_lm, "loss_function", None) is ForCausalLMLoss
    )


def _narrow(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    labels = kwargs.get("labels")
    if labels is None or {"logits_to_keep", "shift_labels"} & kwargs.keys():
        return None
    following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    columns = (following != IGNORED).any(dim=0).nonzero().squeeze(1)
    return args, {**kwargs, "logits_to_keep": columns, "shift_labels": following[:, columns]}
