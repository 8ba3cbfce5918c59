"""How large the weights file of an adapter is at most, its header included.

A safetensors file begins with the name, shape and place of each tensor. For an adapter in the top-k
format, whose tensors are small and many, that is a large part of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from vblora_lab.planning.record import PlanRecord

PREFIX = "base_model.model."
LONGEST_DTYPE = "BF16"  # of those that adapters are stored in
ALIGNMENT = 8
LENGTH = 8  # bytes that give the length of the header

Shapes = Iterable[tuple[str, tuple[int, ...]]]


def vblora_file_bytes(plan: PlanRecord) -> int:
    """Bytes of ``adapter_model.safetensors`` of a VB-LoRA in the top-k format.

    At most: the file is shorter by up to a few bytes a tensor, as numbers in it have fewer digits.

    Args:
        plan: of an adapter that fits its model and has neither biases nor modules to save.
    """
    shapes = [("vblora_vector_bank.default", (plan.num_vectors, plan.vector_length))]
    for target in plan.targets:
        for matrix, tiles in (("A", target.tiles_A), ("B", target.tiles_B)):
            key = f"{target.name}.vblora_logits_{matrix}_topk"
            shapes.append((f"{key}_indices", (*(tiles or ()), plan.topk)))
            shapes.append((f"{key}_weights", (*(tiles or ()), plan.topk - 1)))
    return plan.topk_bytes + _header_bytes(shapes, plan.topk_bytes)


def lora_file_bytes(plan: PlanRecord) -> int:
    """The same of PEFT's LoRA, in float32, of the plan's rank on the plan's modules."""
    shapes = [
        (f"{target.name}.lora_{matrix}.weight", shape)
        for target in plan.targets
        for matrix, shape in (
            ("A", (plan.r, target.in_features)),
            ("B", (target.out_features, plan.r)),
        )
    ]
    return plan.lora_bytes + _header_bytes(shapes, plan.lora_bytes)


def _header_bytes(shapes: Shapes, total: int) -> int:
    """Bytes of the header for tensors of ``total`` bytes together, at most."""
    entry = {"dtype": LONGEST_DTYPE, "data_offsets": [total, total]}
    header = {"__metadata__": {"format": "pt"}} | {
        PREFIX + name: {**entry, "shape": list(shape)} for name, shape in shapes
    }
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return LENGTH + -(-length // ALIGNMENT) * ALIGNMENT
