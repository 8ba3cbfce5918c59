"""The Triton kernels against the reference in float64: on a GPU, or interpreted on a CPU."""

import pytest
import torch

from tests.speed.interpreted import (
    DEVICE,
    INTERPRETED,
    in_another_process,
    passed_interpreted,
    with_kernels,
)
from vblora_lab.admixture import admixture
from vblora_lab.errors import UnsupportedError
from vblora_lab.speed import kernels
from vblora_lab.speed.fused import fused_matrices
from vblora_lab.speed.mixing import mix_all
from vblora_lab.speed.moving import mix_moving


@pytest.mark.slow
@in_another_process
def test_all_of_this_file_interpreted():
    assert passed_interpreted(__file__) >= 10


def logits_of_layers(r, tiles, num_vectors, seed=0):
    """Per layer, the logits of A and of B, as the layers keep them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(*shape, num_vectors, generator=generator)
        return values.to(DEVICE).requires_grad_()

    return [(draw(r, ins), draw(outs, r)) for ins, outs in tiles]


def bank_of(num_vectors, length):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(num_vectors, length, generator=generator).to(DEVICE).requires_grad_()


def gradients(layers, bank, matrices):
    """Of a sum with random slopes, with respect to each layer's logits and the bank."""
    generator = torch.Generator().manual_seed(5)
    flat = [m for pair in matrices for m in pair]
    slopes = [torch.randn(m.shape, generator=generator).to(m) for m in flat]
    return torch.autograd.grad(flat, [bank, *(p for pair in layers for p in pair)], slopes)


def relative(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-300))


SHAPES = [  # r, tiles of (A, B) per layer, num_vectors, vector_length, topk
    (4, [(3, 3), (3, 12)], 256, 256, 2),
    (1, [(1, 1)], 1, 1, 1),
    (2, [(1, 2), (5, 1), (2, 2)], 10, 4, 3),
    (3, [(2, 3)], 257, 48, 5),
    (5, [(1, 4)], 33, 17, 16),
    (2, [(2, 2)], 1000, 100, 2),
    (6, [(7, 1)], 64, 3, 8),
]


@with_kernels
@pytest.mark.parametrize(
    ("mix", "r", "tiles", "num_vectors", "length", "topk"),
    [*((mix_all, *shape) for shape in SHAPES), *((mix_moving, *shape) for shape in SHAPES[1:4])],
)
def test_matrices_and_gradients_are_those_of_the_formula(mix, r, tiles, num_vectors, length, topk):
    layers = logits_of_layers(r, tiles, num_vectors)
    bank = bank_of(num_vectors, length)
    assert kernels.usable([part for pair in layers for part in pair], bank, topk)
    matrices = mix(layers, bank, topk, torch.float32)
    nearest = matrices[0].A.grad_fn.next_functions
    assert "Admixture" in f"{nearest}, {nearest[0][0].next_functions}"

    exact_bank = bank.double()
    exact = []
    for A, B in layers:
        sub_A, sub_B = (admixture(part.double(), exact_bank, topk) for part in (A, B))
        exact.append((sub_A.flatten(1), sub_B.transpose(0, 1).flatten(1)))
    for got, expected in zip(matrices, exact, strict=True):
        for one, other in zip(got, expected, strict=True):
            assert relative(one, other) < 1e-6
    for one, other in zip(
        gradients(layers, bank, matrices), gradients(layers, bank, exact), strict=True
    ):
        assert one.is_contiguous()
        if other.norm() == 0:  # one vector alone: its logit can't matter
            assert one.abs().max() < 1e-5
        else:
            assert relative(one, other.double()) < 1e-5


@with_kernels
def test_half_precision_results_are_the_rounded_ones():
    layers, bank = logits_of_layers(2, [(2, 3)], 40), bank_of(40, 8)
    exact = mix_all(layers, bank, 2, torch.float32)
    rounded = mix_all(layers, bank, 2, torch.bfloat16)
    for padded, other in zip(rounded[0], exact[0], strict=True):
        assert padded.shape[0] == kernels.ALIGNED
        assert not padded[2:].any()
        one = padded[:2]
        assert one.dtype == torch.bfloat16
        if INTERPRETED:  # the interpreter cuts digits off, where a GPU rounds
            torch.testing.assert_close(one.float(), other, rtol=2**-7, atol=0)
        else:
            assert torch.equal(one, other.bfloat16())


@with_kernels
def test_gradients_of_half_precision_results():
    """The rows of zeros have gradients, too, which go nowhere."""
    layers, bank = logits_of_layers(3, [(2, 3), (1, 1)], 40), bank_of(40, 8)
    sources = [bank, *(part for pair in layers for part in pair)]
    slope = bank_of(8, 8).detach().repeat(1, 7).bfloat16()
    half = torch.cat(fused_matrices(layers, bank, 2, torch.bfloat16), dim=1)
    assert half.shape == (8, 56)
    got = torch.autograd.grad((half * slope).sum(), sources)
    single = torch.cat(fused_matrices(layers, bank, 2, torch.float32), dim=1)
    expected = torch.autograd.grad((single * slope[:3]).sum(), sources)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@with_kernels
def test_parameters_in_half_precision_are_mixed_in_float32_and_get_gradients_of_their_own():
    """As FSDP gathers them, and each time elsewhere."""
    bank = bank_of(16, 8).detach().bfloat16()
    for seed in range(2):
        layers = logits_of_layers(2, [(1, 1), (1, 2)], 16, seed)
        for part in (part for pair in layers for part in pair):
            # Numbers that bfloat16 has, none of them twice in a row: which is chosen is no matter
            # of rounding.
            part.data = part.data.argsort(-1).float() / 8
        halves = [tuple(p.detach().bfloat16().requires_grad_() for p in pair) for pair in layers]
        its_bank, same_bank = bank.clone().requires_grad_(), bank.float().requires_grad_()
        matrices = mix_moving(halves, its_bank, 2, torch.float32)
        expected = mix_all(layers, same_bank, 2, torch.float32)
        for got, pair in zip(matrices, expected, strict=True):
            for one, other in zip(got, pair, strict=True):
                torch.testing.assert_close(one, other)
        for one, other in zip(
            gradients(halves, its_bank, matrices),
            gradients(layers, same_bank, expected),
            strict=True,
        ):
            assert one.dtype == torch.bfloat16
            assert relative(one, other.double()) < 2**-7


@with_kernels
def test_the_order_of_sums_can_be_fixed():
    layers, bank = logits_of_layers(4, [(6, 6)] * (1 if INTERPRETED else 4), 8), bank_of(8, 32)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(layers, bank, mix_all(layers, bank, 2, torch.float32)) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    loose = gradients(layers, bank, mix_all(layers, bank, 2, torch.float32))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
    for one, other in zip(loose, runs[0], strict=True):
        assert relative(one, other.double()) < 1e-5


@with_kernels
def test_what_is_frozen_gets_no_gradient():
    layers, bank = logits_of_layers(2, [(2, 3)], 40), bank_of(40, 8)
    for part in layers[0]:
        part.requires_grad_(False)
    loss = sum(m.sum() for m in mix_all(layers, bank, 2, torch.float32)[0])
    loss.backward()
    assert layers[0][0].grad is None
    assert bank.grad.norm() > 0
    bank.requires_grad_(False).grad = None
    layers[0][0].requires_grad_(True)
    sum(m.pow(2).sum() for m in mix_all(layers, bank, 2, torch.float32)[0]).backward()
    assert bank.grad is None
    assert layers[0][0].grad.norm() > 0


@with_kernels
def test_broken_logits_show():
    layers, bank = logits_of_layers(2, [(2, 3)], 40), bank_of(40, 8)
    layers[0][0].data[1, 0, 7] = float("nan")
    matrices = mix_all(layers, bank, 2, torch.float32)[0]
    assert matrices.A[1, :8].isnan().all()
    assert int(matrices.A.isnan().sum()) == 8


@with_kernels
def test_logits_of_a_top_k_file():
    layers, bank = logits_of_layers(1, [(1, 1)], 40), bank_of(40, 8)
    logits = torch.full((1, 1, 40), -torch.inf, device=DEVICE)
    logits[..., [3, 31]] = torch.tensor([0.25, 0.75], device=DEVICE).log()
    A = mix_all([(logits, layers[0][1])], bank, 2, torch.float32)[0].A
    expected = 0.25 * bank[3] + 0.75 * bank[31]
    torch.testing.assert_close(A[0], expected, rtol=1e-6, atol=1e-6)


@with_kernels
def test_a_changed_place_is_seen():
    """The table of addresses is kept from step to step, and must follow the parameters."""
    layers, bank = logits_of_layers(2, [(2, 3)], 40), bank_of(40, 8)
    first = mix_all(layers, bank, 2, torch.float32)[0].A.clone()
    layers[0][0].data = layers[0][0].data.flip(0).contiguous()
    again = mix_all(layers, bank, 2, torch.float32)[0].A
    assert torch.equal(again, first.flip(0))


@with_kernels
def test_it_can_be_turned_off(monkeypatch):
    layers, bank = logits_of_layers(2, [(2, 3)], 40), bank_of(40, 8)
    parts = [part for pair in layers for part in pair]
    assert kernels.usable(parts, bank, 2)
    assert not kernels.usable([part.transpose(0, 1) for part in parts], bank, 2)
    assert not kernels.usable(parts, bank, kernels.MAX_TOPK + 1)
    assert not kernels.usable([part.double() for part in parts], bank, 2)
    monkeypatch.setattr(kernels, "enabled", False)
    assert not kernels.usable(parts, bank, 2)


@with_kernels
def test_tables_that_were_made_under_inference_mode_serve_training():
    layers, bank = logits_of_layers(2, [(2, 3)], 40), bank_of(40, 8)
    with torch.inference_mode():
        mix_all(layers, bank, 2, torch.float32)
    got = gradients(layers, bank, mix_all(layers, bank, 2, torch.float32))
    assert all(torch.isfinite(gradient).all() for gradient in got)


@with_kernels
@pytest.mark.parametrize("learned", ["bank", "logits"])
def test_second_gradients_are_refused_by_name(learned):
    """And not taken to be zero, as they are where the first ones depend on nothing else."""
    layers, bank = logits_of_layers(2, [(2, 3)], 10), bank_of(10, 4)
    one = bank if learned == "bank" else layers[0][0]

    def first():
        A = mix_all(layers, bank, 3, torch.float32)[0].A
        return torch.autograd.grad(A.sum(), one, create_graph=True)[0]

    gradient = first()
    with pytest.raises(UnsupportedError, match="VB-LoRA can be differentiated once"):
        torch.autograd.grad(gradient.sum(), one)


@with_kernels
@pytest.mark.parametrize("needed", ["both", "bank", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiler_gets_the_same_from_the_same_kernels(dtype, needed, monkeypatch):
    """In memory of its own layer by layer, whichever of them are used, and in one graph."""
    layers, bank = logits_of_layers(3, [(2, 3), (4, 2), (2, 3)], 37), bank_of(37, 20)
    parameters = [bank, *(part for pair in layers for part in pair)]
    for i, parameter in enumerate(parameters):
        parameter.requires_grad_(needed == "both" or (i == 0) == (needed == "bank"))
    learned = [p for p in parameters if p.requires_grad]
    called = []
    launch = kernels.forward
    monkeypatch.setattr(kernels, "forward", lambda *a: called.append(len(a[1])) or launch(*a))

    def mixed():
        return mix_all(layers, bank, 3, dtype)

    def learn(matrices):
        loss = matrices[0].A.float().pow(2).sum() + matrices[2].B_T.float().pow(2).sum()
        return torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)

    expected = mixed()
    torch._dynamo.reset()
    got = torch.compile(mixed, backend="aot_eager", fullgraph=True)()
    assert called == [48, 48]  # once for all sub-vectors: eager, and compiled
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B_T, other.B_T)
    assert len({matrix.untyped_storage().data_ptr() for pair in got for matrix in pair}) == 6
    for one, other in zip(learn(got), learn(expected), strict=True):
        assert relative(one, other.double()) < 1e-5
