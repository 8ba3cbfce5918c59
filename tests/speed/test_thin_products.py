"""The thin products' kernels against float64 and PyTorch's products: on a GPU, or interpreted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.cases import scramble
from tests.speed.interpreted import (
    CUDA,
    DEVICE,
    INTERPRETED,
    in_another_process,
    passed_interpreted,
    with_kernels,
)
from tests.speed.test_compiled import opt, tokens
from vblora_lab.speed import kernels, launch
from vblora_lab.speed.frozen_linear import Adapted, frozen_linears
from vblora_lab.speed.thin_products import (
    IN_PYTORCH,
    FusedThinProducts,
    ThinProducts,
    thin_products,
)
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model

# Triton's interpreter computes products of float16, and not of bfloat16.
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]


@pytest.mark.slow
@in_another_process
def test_all_of_this_file_interpreted():
    assert passed_interpreted(__file__) >= 19


def new(*shape, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def made(rows, size, outs, r, dtype=torch.float16, bias=True):
    """x, A, B_T, biases: A and B_T are columns of one matrix, as an admixture lays them."""
    n = len(outs)
    wide = new(r, n * size + sum(outs), dtype=dtype) / size**0.5
    parts = wide.split([size] * n + list(outs), dim=1)
    biases = [new(out, dtype=dtype, seed=i) if bias else None for i, out in enumerate(outs)]
    return new(rows, size, dtype=dtype), parts[:n], parts[n:], biases


def assert_near(one, exact):
    """As near as one rounding of each number, to 8 bits at most."""
    assert (one.double() - exact).norm() <= 0.004 * exact.norm()


# Rows, inputs and outputs that fill blocks, that don't, and that take several.
SIZES = [
    (64, 128, (128,), 8),
    (5, 24, (40,), 4),
    (70, 136, (264, 72), 8),
    (129, 72, (64, 32, 200), 8),
    (65, 144, (136, 136, 136), 16),
    (33, 40, (48,), 64),
]


@with_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "size", "outs", "r"), SIZES)
def test_each_product_in_float64(rows, size, outs, r, bias, dtype):
    x, A, B_T, biases = made(rows, size, outs, r, dtype, bias)
    thin = thin_products(x, A, B_T, biases)
    assert isinstance(thin, FusedThinProducts)
    g = [new(rows, out, dtype=dtype, seed=9) for out in outs]

    Ax, stacked, ys = thin.down_and_up(x, A, B_T, biases)
    gAx, dx = thin.back_through(g, A, stacked, B_T)
    dA, dB_T = thin.gradients(x, g, Ax, gAx)

    # Each from what the kernel got: what was rounded on the way counts as it is.
    along, back = Ax.double().chunk(len(outs), 1), gAx.double().chunk(len(outs), 1)
    for i in range(len(outs)):
        assert_near(along[i], x.double() @ A[i].double().T)
        b = biases[i].double() if bias else 0
        assert_near(ys[i], along[i] @ B_T[i].double() + b)
        assert_near(back[i], g[i].double() @ B_T[i].double().T)
        assert_near(dA[i], back[i].T @ x.double())
        assert_near(dB_T[i], along[i].T @ g[i].double())
    assert_near(dx, sum(part @ a.double() for part, a in zip(back, A, strict=True)))


@with_kernels
def test_sums_that_are_too_long_are_pytorch_s(monkeypatch):
    monkeypatch.setattr("vblora_lab.speed.thin_products.LONGEST", 47)
    launched = []
    call = launch.Launch.__call__
    monkeypatch.setattr(launch.Launch, "__call__", lambda *a: launched.append(1) or call(*a))
    for size, outs, count in ((48, (16, 24), 2), (40, (24, 24), 2), (48, (24, 24), 1)):
        x, A, B_T, biases = made(9, size, outs, 8)
        g, launched[:] = [new(9, out, seed=9) for out in outs], []
        both = []
        for thin in (thin_products(x, A, B_T, biases), IN_PYTORCH):
            Ax, stacked, ys = thin.down_and_up(x, A, B_T, biases)
            gAx, dx = thin.back_through(g, A, stacked, B_T)
            dA, dB_T = thin.gradients(x, g, Ax, gAx)
            both.append([Ax, *ys, gAx, dx, *dA, *dB_T])
        assert len(launched) == count
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@with_kernels
def test_what_the_kernels_do_not_take():
    x, A, B_T, biases = made(6, 32, (16, 24), 8)

    def fused(x=x, A=A, B_T=B_T, biases=biases):
        return isinstance(thin_products(x, A, B_T, biases), FusedThinProducts)

    assert fused()
    assert not fused(*made(6, 32, (16, 24), 8, torch.float32))
    assert not fused(x=new(32, 6).T)
    assert not fused(x=new(0, 32))
    assert not fused(x=nn.Parameter(x, requires_grad=False))  # or any other subclass
    assert not fused(*made(6, 32, (16, 16, 16, 16), 8))  # more layers than there are arguments for
    assert not fused(*made(6, 32, (16, 24), 40))
    assert not fused(biases=[biases[0], None])
    assert not fused(biases=[bias.float() for bias in biases])
    assert not fused(A=[A[0], A[1].contiguous()])
    assert not fused(B_T=[B_T[0], new(24, 8).T])
    kernels.enabled = False
    try:
        assert not fused()
    finally:
        kernels.enabled = True


@with_kernels
@pytest.mark.parametrize("outs", [(24,), (16, 40, 24)])
def test_gradients_of_a_layer_are_those_of_pytorch_s_products(outs, monkeypatch):
    x, A, B_T, biases = made(2 * 3, 32, outs, 8)
    x = x.view(2, 3, 32).requires_grad_()
    weights = [new(out, 32, seed=7) / 6 for out in outs]
    learned = [each.detach().clone().requires_grad_() for each in (*A, *B_T)]
    n, both = len(outs), []
    for chosen in (thin_products, lambda *_: IN_PYTORCH):
        monkeypatch.setattr("vblora_lab.speed.frozen_linear.thin_products", chosen)
        parts = (weights, biases, learned[:n], learned[n:])
        ys = frozen_linears(x, [Adapted(*each) for each in zip(*parts, strict=True)])
        slopes = [new(*y.shape, seed=3) for y in ys]
        both.append([*ys, *torch.autograd.grad(ys, [x, *learned], slopes)])
    for one, other in zip(*both, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-2)


@with_kernels
def test_an_output_that_nobody_uses_and_gradients_that_lie_crosswise():
    x, A, B_T, biases = made(6, 32, (16, 24), 8)
    parts = ([new(16, 32), new(24, 32)], biases, A, [B.requires_grad_() for B in B_T])
    layers = [Adapted(*each) for each in zip(*parts, strict=True)]
    y, _ = frozen_linears(x.requires_grad_(), layers)
    got = torch.autograd.grad(y, [x, *B_T], new(16, 6).T)
    plain = x @ layers[0].weight.T + biases[0] + (x @ A[0].T) @ B_T[0]
    exact = torch.autograd.grad(plain, [x, B_T[0]], new(16, 6).T)
    for one, other in zip(got, exact, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=3e-2)
    assert not got[2].any()


@with_kernels
def test_results_are_the_same_from_run_to_run():
    x, A, B_T, biases = made(200, 136, (72, 64), 8)
    thin, g = thin_products(x, A, B_T, biases), [new(200, 72), new(200, 64)]
    runs = []
    for _ in range(3):
        Ax, stacked, ys = thin.down_and_up(x, A, B_T, biases)
        gAx, dx = thin.back_through(g, A, stacked, B_T)
        dA, dB_T = thin.gradients(x, g, Ax, gAx)
        runs.append([Ax, *ys, gAx, dx, *dA, *dB_T])
    for other in runs[1:]:
        assert all(map(torch.equal, runs[0], other))


@pytest.mark.skipif(not CUDA, reason="the interpreter compiles nothing")
def test_code_that_is_known_is_not_for_a_tensor_that_starts_elsewhere():
    """Triton reads in wider pieces what starts at a multiple of 16 bytes."""
    x, A, B_T, biases = made(64, 128, (128,), 8)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    assert shifted.data_ptr() % launch.ALIGNED
    thin = thin_products(x, A, B_T, biases)
    _, _, (expected,) = thin.down_and_up(x, A, B_T, biases)
    for other in (shifted, x, shifted):
        torch.testing.assert_close(thin.down_and_up(other, A, B_T, biases)[2][0], expected)


def test_without_a_gpu_they_are_pytorch_s():
    if INTERPRETED or CUDA:
        pytest.skip("the kernels run here")
    chosen = thin_products(*made(6, 32, (16, 24), 8))
    assert type(chosen) is ThinProducts


@with_kernels
def test_a_training_pass_launches_three_for_all_layers_with_one_input(monkeypatch):
    """And trains as PyTorch's products do: q, k and v; the attention's output; both of the MLP."""
    model, launched = opt(1).to(DEVICE, torch.float16), []
    config = {"r": 2, "num_vectors": 10, "vector_length": 4, "target_modules": "all-linear"}
    model = get_peft_model(model, VBLoRAConfig(**config))
    scramble(model)
    call = launch.Launch.__call__
    monkeypatch.setattr(launch.Launch, "__call__", lambda *a: launched.append(1) or call(*a))
    ids, gradients = tokens().to(DEVICE), []
    for chosen in (thin_products, lambda *_: IN_PYTORCH):
        monkeypatch.setattr("vblora_lab.speed.frozen_linear.thin_products", chosen)
        model.zero_grad()
        with torch.autocast(DEVICE.type, torch.float16):
            model.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(launched) == 4 * 3
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 0.05 * other.norm()
