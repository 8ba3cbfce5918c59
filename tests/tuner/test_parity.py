"""Same bank, logits and input: outputs and every gradient are those of PEFT's own tuner."""

import pytest
import torch
from peft.tuners.vblora import VBLoRAModel as StockModel

from tests.cases import CASES, assert_close, scramble


def twins(case, **changes):
    """A model of this package and one of PEFT with equal numbers in every parameter."""
    ours, stock = case.ours(**changes), case.stock(**changes)
    assert isinstance(stock.base_model, StockModel)
    scramble(stock)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return ours, stock


def test_parameters_have_the_names_and_shapes_of_peft(case):
    ours, stock = twins(case)
    shapes = {name: p.shape for name, p in stock.named_parameters()}
    assert {name: p.shape for name, p in ours.named_parameters()} == shapes
    trained = [name for name, p in stock.named_parameters() if p.requires_grad]
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == trained
    assert list(ours.state_dict()) == list(stock.state_dict())


@pytest.mark.parametrize("changes", [{}, {"bias": "all", "vblora_dropout": 0.3, "topk": 2}])
def test_outputs_and_all_gradients_equal_those_of_peft(case, changes):
    ours, stock = twins(case, **changes)
    results = []
    for model in (ours, stock):
        model.double().train()
        torch.manual_seed(11)  # the same dropout
        output = case.output(model)
        output.pow(2).mean().backward()
        results.append((output, {name: p.grad for name, p in model.named_parameters()}))
    (output, gradients), (stock_output, stock_gradients) = results
    assert_close(output, stock_output)
    compared = 0
    # A shift of all keys cancels in softmax: the gradient of their bias is zero but for rounding.
    rounding = 1e-12 * max(g.norm() for g in stock_gradients.values() if g is not None)
    for name, expected in stock_gradients.items():
        if expected is None:
            assert gradients[name] is None, name
        else:
            assert (gradients[name] - expected).norm() <= 1e-6 * expected.norm() + rounding, name
            compared += bool(expected.norm() > 0)
    # A and B of each adapted layer, and the bank: none of them may be zero, or nothing was tested.
    assert compared >= 2 * len(ours.base_model.targeted_module_names) + 1


def test_training_takes_the_same_course(opt_case):
    ours, stock = twins(opt_case)
    losses = {}
    for name, model in (("ours", ours), ("stock", stock)):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        tokens = opt_case.inputs()
        losses[name] = []
        for _ in range(15):
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    assert losses["ours"] == pytest.approx(losses["stock"], rel=1e-5)
    assert losses["ours"][-1] < 0.9 * losses["ours"][0]


def test_the_update_is_b_times_a_in_float64():
    """Ten lines from logits to output, in float64, without this package or PEFT."""
    case = CASES["linear"]
    model = case.ours()
    scramble(model)
    layer = model.base_model.model.first
    bank = model.vblora_vector_bank["default"].double()

    def sub_vectors(logits):
        best, indices = logits.double().topk(3)
        return torch.einsum("...k,...kb->...b", best.softmax(-1), bank[indices])

    A = sub_vectors(layer.vblora_logits_A["default"]).reshape(2, 8)
    B = torch.cat([tile.T for tile in sub_vectors(layer.vblora_logits_B["default"])])
    x = case.inputs().double()
    weight = layer.base_layer.weight.double() + B @ A
    expected = x @ weight.T + layer.base_layer.bias.double()
    torch.testing.assert_close(layer(case.inputs()).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_gradcheck_through_the_layer(kind):
    case = CASES[kind]
    model = case.ours(vector_length=2, num_vectors=4, topk=2, r=1).double()
    layer = model.base_model.model.second
    spread = torch.randperm(layer.vblora_logits_A["default"].numel()).double() / 10
    layer.vblora_logits_A["default"].data = spread.view_as(layer.vblora_logits_A["default"])
    spread = torch.randperm(layer.vblora_logits_B["default"].numel()).double() / 10
    layer.vblora_logits_B["default"].data = spread.view_as(layer.vblora_logits_B["default"])
    names = ["vblora_logits_A.default", "vblora_logits_B.default", "vblora_vector_bank.default"]
    parameters = dict(layer.named_parameters())

    def output(x, *values):
        changed = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, changed, (x,))

    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    values = [parameters[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(output, (x, *values))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_gradients_of_the_input_can_be_differentiated_again_as_in_peft(kind):
    """A penalty on them, as in adversarial training, of which every parameter gets a gradient."""
    case = CASES[kind]
    found = []
    for model in twins(case):
        x = case.inputs().double().requires_grad_()
        loss = model.double()(x).pow(2).mean()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        slope.pow(2).sum().backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found.append({"x": x.grad, **{name: p.grad for name, p in trained.items()}})
    for name, expected in found[1].items():
        assert expected.norm() > 0
        assert_close(found[0][name], expected, relative=1e-6)
