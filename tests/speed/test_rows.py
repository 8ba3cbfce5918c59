"""A batch by rows against a loop over its samples, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from vblora_lab.errors import ConfigError
from vblora_lab.speed import rows
from vblora_lab.speed.rows import RowBatch, RowLayer, add_by_row

CPU = torch.device("cpu")
SIZES = {"q": (6, 4), "fc": (4, 8), "v": (6, 6)}
LAYERS = {name: RowLayer(*size, CPU, torch.float64) for name, size in SIZES.items()}


@dataclass
class Group:
    """Adapters with matrices of their own, that say when they are asked for."""

    names: list[str]
    layers: dict[str, object]
    r: int
    asked: list[tuple[str, ...]] = field(default_factory=list)
    holder: dict[str, Tensor] = field(default_factory=lambda: {"p": nn.Parameter(torch.ones(1))})

    def __post_init__(self) -> None:
        self.A = {
            (n, layer): torch.randn(self.r, SIZES[layer][0]).double() for n, layer in self._all()
        }
        self.B_T = {
            (n, layer): torch.randn(self.r, SIZES[layer][1]).double() for n, layer in self._all()
        }

    def _all(self):
        return [(name, layer) for name in self.names for layer in self.layers]

    def places(self):
        return [(self.holder, "p")]

    def mix(self, layers, device, dtype):
        self.asked.append(tuple(layers))
        sides = [
            torch.cat([m for x in layers for m in (self.A[n, x], self.B_T[n, x])], dim=1)
            for n in self.names
        ]
        return torch.stack(sides).to(dtype) * self.holder["p"].detach()


def groups() -> list[Group]:
    torch.manual_seed(0)
    return [
        Group(["a", "b"], dict.fromkeys(SIZES), 2),
        Group(["c"], {"v": None, "q": None}, 3),
        Group(["d"], {"fc": None}, 1),
    ]


def expected(of: list[Group], layer: str, names: list[str | None], output: Tensor, x: Tensor):
    """A round for each sample."""
    result = output.clone()
    each = len(x) // len(names)
    for i, name in enumerate(names):
        for group in of:
            if name in group.names and layer in group.layers:
                there = slice(i * each, (i + 1) * each)
                update = x[there] @ group.A[name, layer].T @ group.B_T[name, layer]
                result[there] = result[there] + update
    return result


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b"],
        ["b", "a", "b"],
        ["c", None, "a", "d"],
        ["d", "d", "a", "a", None, None],
        ["c"] * 3,
        [None, None],
    ],
)
@pytest.mark.parametrize("shape", [(1,), (2, 5), (3,)])  # of what a sample's rows are
@pytest.mark.parametrize("spare", [2**28, 0])
def test_each_row_has_the_update_of_its_adapter(names, shape, spare, monkeypatch):
    monkeypatch.setattr(rows, "spare_bytes", lambda device: spare)
    all_groups = groups()
    used = [g for g in all_groups if set(g.names) & set(names)]
    for group in used:  # those that aren't in the batch are never looked at
        group.names = [n for n in group.names if n in names]
    batch = RowBatch(names, used, LAYERS)
    for in_pass in (True, False):
        if in_pass:
            batch.begin_pass()
        for layer, (size_in, size_out) in SIZES.items():
            x = torch.randn(len(names) * shape[0], *shape[1:], size_in).double()
            output = torch.randn(*x.shape[:-1], size_out).double()
            found = batch.add_updates(layer, output, x)
            torch.testing.assert_close(found, expected(used, layer, names, output, x))
        batch.end_pass()


def test_a_batch_for_one_adapter_is_one_product(monkeypatch):
    group = groups()[0]
    group.names = ["a"]
    batch = RowBatch(["a"] * 4, [group], LAYERS)
    batch.begin_pass()
    seen = []
    monkeypatch.setattr(
        rows, "add_by_row", lambda o, x, A, B_T: seen.append(len(A)) or add_by_row(o, x, A, B_T)
    )
    batch.add_updates("q", torch.zeros(8, 4).double(), torch.zeros(8, 6).double())
    assert seen == [1]


def test_what_was_mixed_holds_as_long_as_its_parameters():
    group = groups()[0]
    batch = RowBatch(["a", "b"], [group], LAYERS)

    def one_pass() -> int:
        batch.begin_pass()
        batch.end_pass()
        return len(group.asked)

    with torch.no_grad():
        assert [one_pass(), one_pass()] == [1, 1]
        group.holder["p"].mul_(2)
        assert [one_pass(), one_pass()] == [2, 2]
        group.holder["p"] = nn.Parameter(torch.ones(1))
        assert [one_pass(), one_pass()] == [3, 3]
        with torch.autocast("cpu", torch.bfloat16):
            assert [one_pass(), one_pass()] == [4, 4]
    assert [one_pass(), one_pass()] == [5, 6]  # with gradients, every time


def test_rows_that_are_no_multiple_of_the_samples_and_names_in_no_group():
    batch = RowBatch(["a", "b"], groups()[:1], LAYERS)
    with pytest.raises(ConfigError, match="2 names for a batch of 3 samples"):
        batch.add_updates("q", torch.zeros(3, 4), torch.zeros(3, 6))
    with pytest.raises(ConfigError, match="'nobody'"):
        RowBatch(["a", "nobody"], groups()[:1], LAYERS)


def test_an_output_of_another_dtype_keeps_it():
    x, A, B_T = torch.randn(4, 6), torch.randn(2, 3, 6), torch.randn(2, 3, 5)
    output = torch.randn(4, 5)
    low = add_by_row(output.bfloat16(), x.bfloat16(), A, B_T)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), add_by_row(output, x, A, B_T), rtol=0.05, atol=0.1)
