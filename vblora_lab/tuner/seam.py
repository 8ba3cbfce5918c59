"""How PEFT comes to use this package's classes for VB-LoRA.

PEFT decides by two tables: PEFT_TYPE_TO_TUNER_MAPPING says which class adapts a model, saves and
loads it, PEFT_TYPE_TO_CONFIG_MAPPING which class reads its config. Importing this module leaves
both alone. `get_peft_model` and `from_pretrained` swap the VB-LoRA entries for the length of one
call, `using` for a block, `register` until `unregister`. With them, PeftModel's ways to load and to
save an adapter are swapped for ones that leave nothing behind if they fail (see `loads`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from vblora_lab.tuner import loads, starts
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.model import VBLoRAModel

METHODS = ("from_pretrained", "load_adapter", "save_pretrained")  # of PeftModel, see `loads`


class _Block:
    """A `using` block that is entered. One that an interrupt keeps from leaving is forgotten."""


class _Seam:
    """Who holds PEFT's entries and loads: ours while anybody asks, else what was there before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registered = False
        self.blocks: weakref.WeakSet[_Block] = weakref.WeakSet()  # in all threads
        self.before: tuple[Any, ...] | None = None

    def settle(self) -> None:
        """Swap the entries if they aren't those that are asked for."""
        with self.lock:
            asked_for = self.registered or len(self.blocks) > 0
            if asked_for and self.before is None:
                self.before = (
                    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.VBLORA],
                    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VBLORA],
                    *(PeftModel.__dict__[name] for name in METHODS),
                )
                whole = classmethod(loads.from_pretrained)
                ours = (whole, loads.load_adapter, loads.save_pretrained)
                self._set(VBLoRAConfig, VBLoRAModel, *ours)
            elif not asked_for and self.before is not None:
                self._set(*self.before)
                self.before = None

    @staticmethod
    def _set(config_class: type, tuner_class: type, *methods: Any) -> None:
        # In place: other modules of PEFT imported these very dictionaries.
        PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.VBLORA] = config_class
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VBLORA] = tuner_class
        for name, method in zip(METHODS, methods, strict=True):
            setattr(PeftModel, name, method)


_seam = _Seam()


def register(*, start_at_base: bool = False) -> None:
    """Make PEFT use this package's classes for VB-LoRA everywhere, until `unregister`.

    Args:
        start_at_base: let every new adapter begin with B A = 0, see `start_at_base`. For programs
            that make the adapter themselves and measure against the base model, such as TRL's
            trainers with ``peft_config=``. What is loaded from a file is as it was stored.

    Files are still found and read by PEFT then. Where a folder has no safetensors file, PEFT reads
    adapter_model.bin, a pickle, by torch.load(weights_only=True), which builds tensors and plain
    containers and runs no code. `from_pretrained` of this module reads no pickle at all.
    """
    _seam.registered = True
    starts.AT_BASE.asked_for = start_at_base
    _seam.settle()


def unregister() -> None:
    """Give PEFT its own VB-LoRA classes back. Models made meanwhile keep working."""
    _seam.registered = False
    starts.AT_BASE.asked_for = False
    _seam.settle()


@contextmanager
def using() -> Iterator[None]:
    """`register` for the length of a with block, in all threads; blocks may nest and overlap."""
    block = _Block()
    try:
        _seam.blocks.add(block)
        _seam.settle()
        yield
    finally:
        _seam.blocks.discard(block)
        _seam.settle()
