"""A config as Python that makes an equal one."""

from __future__ import annotations

import enum
from dataclasses import fields
from typing import Any

from vblora_lab.tuner.config import VBLoRAConfig

ALWAYS_IN_CODE = ("r", "num_vectors", "vector_length", "topk")
NOT_IN_CODE = ("peft_type", "peft_version", "auto_mapping")  # PEFT sets these itself


def as_code(config: VBLoRAConfig) -> str:
    """Python that makes an equal config: what isn't at its default, and the four main numbers."""
    defaults = type(config)()
    names = [spec.name for spec in fields(config) if spec.name not in NOT_IN_CODE]
    own = [name for name in names if name in type(config).__annotations__]
    arguments = [
        f"    {name}={as_literal(getattr(config, name))},\n"
        for name in dict.fromkeys([*own, *names])  # this method's fields before PEFT's
        if name in ALWAYS_IN_CODE or getattr(config, name) != getattr(defaults, name)
    ]
    call = "".join(arguments)
    return f"from vblora_lab import VBLoRAConfig\n\nconfig = VBLoRAConfig(\n{call})\n"


def as_literal(value: Any) -> str:
    """A field's value as Python, short where it can be."""
    if isinstance(value, (set, list, tuple)):
        items = [as_literal(item) for item in (sorted(value) if isinstance(value, set) else value)]
        line = f"[{', '.join(items)}]"
        if len(line) <= 72:
            return line
        return "[\n" + "".join(f"        {item},\n" for item in items) + "    ]"
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str) and value.isprintable() and '"' not in value:
        if "\\" not in value:
            return f'"{value}"'
        if not value.endswith("\\"):
            return f'r"{value}"'
    return repr(value)
