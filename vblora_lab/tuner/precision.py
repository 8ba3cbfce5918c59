"""The numbers of an adapter in fewer bits: float16, or 8 bits with a scale for each block of 64.

Rounding happens after training, when an adapter is stored. In 8 bits, a number is a whole one from
-127 to 127 times the scale of its block; a scale is float16, the block's largest magnitude / 127.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vblora_lab.errors import CheckpointError, ConfigError, did_you_mean

FLOAT32, FLOAT16, INT8 = PRECISIONS = ("float32", "float16", "int8")
DTYPES = {FLOAT32: torch.float32, FLOAT16: torch.float16}
BLOCK = 64  # numbers that share a scale in 8 bits
LARGEST = 127


def check_precision(save_in: str) -> None:
    """Raise `ConfigError` for what is none of `PRECISIONS`."""
    if save_in not in PRECISIONS:
        allowed = ", ".join(map(repr, PRECISIONS))
        hint = did_you_mean(save_in, PRECISIONS)
        raise ConfigError(f"save_in={save_in!r}: must be one of {allowed}.{hint}", field="save_in")


def bytes_of(numbers: int, save_in: str) -> int:
    """What so many numbers of one tensor take, scales included."""
    if save_in == INT8:
        return numbers + math.ceil(numbers / BLOCK) * torch.float16.itemsize
    return numbers * DTYPES[save_in].itemsize


def rounded(values: Tensor, save_in: str) -> Tensor:
    """Numbers, of any shape, as they come back from a file of this precision, in float32."""
    if save_in == INT8:
        return decoded(*encoded(values))
    return values.to(DTYPES[save_in]).float()


def encoded(values: Tensor) -> tuple[Tensor, Tensor]:
    """Floats of any shape as codes of that shape, int8, and scales (blocks,) float16.

    Blocks are cut from the numbers in row order, across rows; the last one may be shorter.
    """
    blocks = _in_blocks(values.float())
    scales = (blocks.abs().amax(1) / LARGEST).half()
    # A block of numbers next to zero has a scale of zero: whatever its codes, it is all zeros.
    steps = blocks / scales.float().clamp_min(1e-12)[:, None]
    codes = steps.round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return codes.flatten()[: values.numel()].view(values.shape), scales


def decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """What codes and scales stand for: float32, in the shape of the codes."""
    numbers = _in_blocks(codes.float()) * scales.float()[:, None]
    return numbers.flatten()[: codes.numel()].view(codes.shape)


def _in_blocks(values: Tensor) -> Tensor:
    """(blocks, BLOCK), with zeros at the end."""
    flat = values.flatten()
    count = math.ceil(len(flat) / BLOCK)
    return torch.cat([flat, flat.new_zeros(count * BLOCK - len(flat))]).view(count, BLOCK)


def check_range(values: Tensor, save_in: str, where: str) -> None:
    """Raise `CheckpointError` for finite numbers that this precision can't hold.

    Args:
        values: of the adapter.
        save_in: one of `PRECISIONS`.
        where: names the tensor in the message.
    """
    most = torch.finfo(torch.float16).max * (LARGEST if save_in == INT8 else 1)
    magnitude = torch.nan_to_num(values.abs(), posinf=0.0)  # -inf is kept as it is
    if save_in != FLOAT32 and magnitude.numel() and float(magnitude.max()) > most:
        raise CheckpointError(
            f"{where} has numbers up to {float(magnitude.max()):g}, and {save_in} holds {most:g} "
            "at most. Store it in float32."
        )
