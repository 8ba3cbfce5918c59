"""Launching a Triton kernel in as little of the host's time as PyTorch's shortest operations take.

Triton looks at each argument in each call, to find the code that was compiled for arguments of its
kind. On an H200's host that took 25 microseconds for a kernel of 25 arguments, and 11 once the code
was known. So a `Launch` is made for arguments that stay the same, and knows its code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

ALIGNED = 16  # bytes: tensors that start at a multiple of it may be read in wider pieces


class Launch:
    """A kernel with all that it gets but tensors.

    Args:
        kernel: made by `triton.jit`.
        grid: how many programs, in up to three directions.
        arguments: behind the tensors, constants too, in the kernel's order.
        options: for the compiler, such as num_warps.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, ...], arguments: tuple[int, ...], **options: int
    ) -> None:
        self._kernel, self._options = kernel, options
        self._grid = (*grid, 1, 1)[:3]
        self._arguments = arguments
        self._compiled: Any = None

    def __call__(self, *tensors: Tensor) -> None:
        """Run it on the current device, which must be that of all earlier calls.

        Args:
            tensors: of the same dtypes in each call.
        """
        aligned = not any([tensor.data_ptr() % ALIGNED for tensor in tensors])
        if aligned and self._compiled is not None:
            self._compiled(*tensors, *self._arguments)
            return
        code = self._kernel[self._grid](*tensors, *self._arguments, **self._options)
        if aligned and code is not None:  # None from Triton's interpreter
            self._compiled = code[self._grid]
