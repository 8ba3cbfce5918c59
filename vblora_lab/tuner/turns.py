"""Several threads, several adapters, one model: each thread has its turn with the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from peft import PeftModel

from vblora_lab.errors import TargetError
from vblora_lab.tuner.model import VBLoRAModel


@contextmanager
def using_adapter(model: PeftModel, adapter_name: str) -> Iterator[PeftModel]:
    """Make an adapter the active one for a block, while other threads wait for their turn.

    Which adapter is active is a property of the model, in PEFT too: threads that call
    ``set_adapter`` and then the model get each other's answers. Within this block they can't:

        with vblora_lab.using_adapter(model, "french") as model:
            model.generate(...)

    Threads that all call one adapter need no turns. For many requests at once, one call with
    ``adapter_names=`` (one for each row of a batch) is quicker than turns.

    Args:
        model: a PeftModel made by this package.
        adapter_name: which adapter.

    What was active before is active afterwards, and what is trained stays as it was.

    Raises:
        TargetError: the model wasn't made by this package.
        ConfigError: no adapter has that name.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, VBLoRAModel):
        raise TargetError(f"model is a {type(model).__name__}, not one made by vblora_lab.")
    tuner.check_adapter_exists(adapter_name)
    with tuner.pool.turns:
        of_peft_model, of_tuner = model.active_adapter, list(tuner.active_adapters)
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            model.set_adapter(adapter_name, inference_mode=True)
            yield model
        finally:
            tuner.set_adapter(of_tuner, inference_mode=True)
            model.active_adapter = cast(str, of_peft_model)
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)
