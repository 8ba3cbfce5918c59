"""What notebook 02 defines, taken out of it and compared with the library and with formulas."""

import pytest
import torch
from torch import nn

import vblora_lab as lab
from vblora_lab.admixture import admixture, low_rank_matrices
from vblora_lab.course import worked

from .notebook import definitions


@pytest.fixture(scope="module")
def defined():
    """What the chapter hands over, and for the layer, which the reader writes, the solution."""
    found = definitions("02")
    found["VBLinear"] = worked.VBLinear  # what `adapt` finds by this name
    return found


@pytest.mark.parametrize("k", [1, 2, 5])
def test_admixture_is_the_library_s(defined, k):
    logits, bank = torch.randn(3, 4, 5).double(), torch.randn(5, 6).double()
    torch.testing.assert_close(defined["admixture"](logits, bank, k), admixture(logits, bank, k))


def test_the_layer_adds_b_a_x(defined):
    torch.manual_seed(0)
    bank = nn.Parameter(torch.randn(7, 4).double())
    layer = defined["VBLinear"](nn.Linear(8, 12).double(), bank, r=3, k=2).double()
    A, B = low_rank_matrices(layer.logits_A, layer.logits_B, bank, 2)
    x = torch.randn(2, 5, 8).double()
    torch.testing.assert_close(layer(x), layer.base(x) + x @ (B @ A).T)
    inputs = (x, bank, layer.logits_A, layer.logits_B)
    assert torch.autograd.gradcheck(lambda *_: layer(x), [t.requires_grad_() for t in inputs])


def test_adapt_shares_one_bank_and_freezes_the_rest(defined):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    bank = defined["adapt"](model, ["0", "2"], h=6, b=4, r=2, k=2)
    assert model[0].bank is model[2].bank is bank
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.bank", "0.logits_A", "0.logits_B", "2.logits_A", "2.logits_B"}

    config = lab.VBLoRAConfig(
        r=2, num_vectors=6, vector_length=4, target_modules=["0", "2"], layers_to_transform=None
    )
    plain = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    expected = lab.plan(plain, config).trained_parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
