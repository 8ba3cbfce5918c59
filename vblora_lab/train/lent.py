"""A model that is lent to a Trainer: when it comes back, nothing but its numbers has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel

from vblora_lab.train.completion import completion_logits
from vblora_lab.train.devices import current_device_of
from vblora_lab.train.locked import locked

# What accelerate leaves in a model that it has prepared for mixed precision: a forward of its own,
# under autocast. What the model says would differ from what its stored adapter says, and a deep
# copy would ask the model itself, since functions aren't copied.
_FORWARD = ("forward", "_original_forward")


@contextmanager
def lent_to_trainer(model: PeftModel) -> Iterator[None]:
    """Inside the block a Trainer may prepare and train the model; nobody else can edit it.

    See `locked`, `current_device_of` and `completion_logits`.
    """
    own = {name: vars(model)[name] for name in _FORWARD if name in vars(model)}
    with locked(model), current_device_of(model), completion_logits(model):
        try:
            yield
        finally:
            for name in _FORWARD:
                vars(model).pop(name, None)
            vars(model).update(own)
