"""The kernels compile for GPUs that aren't here, and ask each program for no more than they have.

Interpreted, a kernel computes the right numbers even if no compiler takes it. Here every kernel
goes through Triton's compiler down to machine code, with the arguments with which it is launched.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

from tests.speed.interpreted import INTERPRETED
from tests.speed.test_thin_products import made
from vblora_lab.speed import kernels, row_kernel, thin_kernels
from vblora_lab.speed.thin_products import LONGEST, FusedThinProducts

triton = pytest.importorskip("triton", reason="Triton isn't installed; it has no build for this")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Compute capability, and the shared memory that one program can have (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability"): A100, RTX 30, RTX 40, H100, B200, RTX 50.
KIB = 1024
GPUS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
EVERY_TIME = 90  # the others take minutes
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TYPES |= {torch.int32: "*i32", torch.int64: "*i64"}


class Compiled:
    """In place of a kernel: a launch compiles it for a GPU and runs nothing."""

    def __init__(self, kernel, capability, found):
        self._kernel, self._capability, self._found = kernel, capability, found

    def __getitem__(self, grid):
        return self._compile

    def _compile(self, *args, num_warps=4, num_stages=3, **named):
        signature, constants, attributes = {}, {}, {}
        arguments = inspect.signature(self._kernel.fn).bind(*args, **named).arguments
        for i, (name, value) in enumerate(arguments.items()):
            is_tensor = isinstance(value, torch.Tensor)
            constant = not is_tensor and (self._kernel.params[i].is_constexpr or value == 1)
            if constant:
                constants[name] = value
            elif is_tensor or value % 16 == 0:  # memory starts at a multiple of 16 bytes
                attributes[(i,)] = [["tt.divisibility", 16]]
            signature[name] = (
                "constexpr" if constant else TYPES[value.dtype] if is_tensor else "i32"
            )
        code = triton.compile(
            ASTSource(self._kernel, signature, constants, attributes),
            target=GPUTarget("cuda", self._capability, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        self._found.append(SimpleNamespace(shared=code.metadata.shared, binary=code.asm["cubin"]))


LAUNCHED = {
    kernels: ("_forward_kernel", "_backward_kernel"),
    row_kernel: ("_add_to_row_kernel",),
    thin_kernels: ("down_up", "back", "gradients"),
}


@pytest.fixture(
    params=[
        pytest.param(gpu, marks=pytest.mark.slow if gpu == EVERY_TIME else pytest.mark.long)
        for gpu in GPUS
    ]
)
def launched(request, monkeypatch, tmp_path):
    """What is launched in a test, compiled; looked at when it is over."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    for module, names in LAUNCHED.items():
        for name in names:
            kernel = Compiled(getattr(module, name), request.param, found)
            monkeypatch.setattr(module, name, kernel)
    yield found
    for code in found:
        assert code.binary[:4] == b"\x7fELF"
        assert code.shared <= GPUS[request.param] * KIB


# Rows, inputs, outputs and rank of layers with one input, as they are in models.
LAYERS = {
    "OPT-125m's q, k and v": (4096, 768, (768, 768, 768), 4),
    "Llama 8B's gate and up": (2048, 4096, (14336, 14336), 8),
    "many rows of A": (2048, 4096, (4096,), 64),
    "sizes that fill no block": (70, 136, (264, 72), 5),
}


@pytest.mark.parametrize("layers", LAYERS)
def test_thin_products(launched, layers):
    rows, size, outs, r = LAYERS[layers]
    x, A, B_T, biases = made(rows, size, outs, r, torch.bfloat16)
    strides = A[0].stride(0), B_T[0].stride(0)
    thin = FusedThinProducts(rows, size, outs, r, strides, biased=True)
    Ax, stacked, ys = thin.down_and_up(x, A, B_T, biases)
    gAx, _ = thin.back_through(ys, A, stacked, B_T)
    thin.gradients(x, ys, Ax, gAx)
    assert len(launched) == (3 if sum(outs) <= LONGEST else 2)


@pytest.mark.parametrize(("num_vectors", "length", "topk"), [(90, 256, 2), (2048, 48, 3)])
def test_the_admixture(launched, num_vectors, length, topk):
    rows, r = 32, 4
    logits, bank = torch.empty(rows, num_vectors), torch.empty(num_vectors, length)
    places = torch.arange(rows)
    out, *chosen = kernels.forward(logits, places * num_vectors, bank, topk, r, torch.bfloat16)
    kernels.backward(out, bank, *chosen, places, logits_need=True, bank_needs=True)
    assert len(launched) == 2


@pytest.mark.parametrize("in_slots", [True, False])
def test_an_adapter_for_each_row(launched, in_slots):
    x, output = (torch.empty(3, size, dtype=torch.bfloat16) for size in (768, 3072))
    A, B_T = (torch.empty(3, 4, size, dtype=torch.bfloat16) for size in (768, 3072))
    slots = torch.arange(3) if in_slots else None
    row_kernel.add_to_rows(output, x, A, B_T, slots)
    assert len(launched) == 1
