"""The kernel for one row a sample against the reference in float64: on a GPU, or interpreted."""

from __future__ import annotations

import pytest
import torch

from tests.speed.interpreted import (
    DEVICE,
    in_another_process,
    passed_interpreted,
    with_kernels,
)
from vblora_lab.speed import row_kernel
from vblora_lab.speed.rows import RowBatch, RowLayer, add_by_row


@pytest.mark.slow
@in_another_process
def test_all_of_this_file_interpreted():
    assert passed_interpreted(__file__) >= 10


def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


# Sizes that fill blocks, that don't, and that take several.
SIZES = [(256, 512, 8), (300, 40, 3), (64, 700, 1), (520, 1030, 16)]


@with_kernels
@pytest.mark.parametrize(("size_in", "size_out", "r"), SIZES)
@pytest.mark.parametrize("in_slots", [False, True])
@torch.no_grad()
def test_it_is_the_reference(size_in, size_out, r, in_slots):
    x, output = new(3, 1, size_in), new(3, 1, size_out)
    slots = torch.tensor([1, 0, 1], device=DEVICE) if in_slots else None
    # Columns of a wider matrix, with the rank first in memory, as an admixture lays them.
    wide = new(r, 2 if in_slots else 3, 5 + size_in + size_out).transpose(0, 1) / size_in**0.5
    A, B_T = wide[..., 5 : 5 + size_in], wide[..., 5 + size_in :]
    of_rows = (A, B_T) if slots is None else (A[slots], B_T[slots])
    exact = add_by_row(output.double(), x.double(), *(m.double() for m in of_rows))
    assert row_kernel.usable(output, x, A, B_T, 3)
    found = row_kernel.add_to_rows(output, x, A, B_T, slots)
    assert found.shape == (3, 1, size_out) and found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() < 0.005 * exact.norm()  # one rounding to 8 bits


@with_kernels
@torch.no_grad()
def test_what_it_does_not_take():
    x, output, A, B_T = new(2, 1, 32), new(2, 1, 16), new(2, 4, 32), new(2, 4, 16)
    assert row_kernel.usable(output, x, A, B_T, 2)
    assert not row_kernel.usable(output, x.expand(2, 3, 32), A, B_T, 2)  # several rows a sample
    assert not row_kernel.usable(output.float(), x, A, B_T, 2)
    assert not row_kernel.usable(*(each.float() for each in (output, x, A, B_T)), 2)
    assert not row_kernel.usable(output, new(1, 32, 2).mT, A, B_T, 2)
    assert not row_kernel.usable(output, x, new(2, 17, 32), new(2, 17, 16), 2)
    with torch.enable_grad():
        assert not row_kernel.usable(output, x, A, B_T, 2)


class Group:
    names, layers = ("a", "b"), {"q": None}

    def places(self):
        return []

    def mix(self, layers, device, dtype):
        torch.manual_seed(0)
        return new(2, 4, 48, dtype=dtype)


@with_kernels
@torch.no_grad()
def test_a_batch_uses_it_for_single_rows(monkeypatch):
    batch = RowBatch(["b", None, "a"], [Group()], {"q": RowLayer(32, 16, DEVICE, torch.bfloat16)})
    batch.begin_pass()
    x, output = new(3, 1, 32), new(3, 1, 16)
    before = output.clone()
    used = []
    add = row_kernel.add_to_rows
    monkeypatch.setattr(row_kernel, "add_to_rows", lambda *a: used.append(1) or add(*a))
    found = batch.add_updates("q", output, x)
    assert used == [1]
    assert torch.equal(found[1], before[1])
    monkeypatch.setattr(row_kernel, "usable", lambda *a: False)
    expected = batch.add_updates("q", before, x)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.1)
