"""Counterfactuals: what is computed while they hold, and that nothing is left of them."""

import copy

import numpy as np
import pytest
import torch

import vblora_lab.tuner.peft as lab
from tests.cases import assert_close, scramble
from vblora_lab.errors import CounterfactualError
from vblora_lab.inspection.counterfactual import Counterfactual
from vblora_lab.inspection.reading import read_selection
from vblora_lab.tuner.config import VBLoRAConfig

TOLERANCE = 5e-5  # merged weights are rounded to float32; a change of a mixture shows at 1e-2


@pytest.fixture
def model(case):
    model = case.ours()
    scramble(model)
    return model.eval()


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        as_bytes = (t.contiguous().view(torch.uint8) for t in (after[name], tensor))
        assert torch.equal(*as_bytes), name


def by_hand(case, model, row, mixture, zero=None):
    """The output of a copy whose merged weights are built from one changed sub-vector, in float64.

    Adds to each base weight the sum over sub-vectors, one entry of A or B at a time.
    """
    selection, places = read_selection(model), read_selection(model).sub_vectors
    copied = copy.deepcopy(model).get_base_model()
    first = next(m for m in copied.modules() if hasattr(m, "vblora_logits_A"))
    bank = first.vblora_vector_bank["default"].detach().double().numpy().copy()
    if zero is not None:
        bank[zero] = 0
    length = bank.shape[1]
    for number, name in enumerate(places.modules):
        layer = copied.get_submodule(name)
        A = np.zeros((layer.r["default"], layer.in_features))
        B = np.zeros((layer.out_features, layer.r["default"]))
        for i in np.flatnonzero(places.module == number):
            pairs = zip(selection.indices[i], selection.weights[i].astype(np.float64), strict=True)
            u = sum(w * bank[v] for v, w in (mixture if i == row else pairs))
            part = slice(places.tile[i] * length, (places.tile[i] + 1) * length)
            if places.matrix[i] == "A":
                A[places.rank[i], part] = u
            else:
                B[part, places.rank[i]] = u
        delta = torch.from_numpy(B @ A)
        weight = layer.base_weight()
        weight.data += (delta.T if layer.fan_in_fan_out else delta).to(weight.dtype)
        parent, _, last = name.rpartition(".")
        setattr(copied.get_submodule(parent) if parent else copied, last, layer.base_layer)
    for hooks in (copied._forward_pre_hooks, copied._forward_hooks):
        hooks.clear()
    return case.output(copied)


@torch.no_grad()
def test_a_forced_mixture_is_what_the_model_computes_with(case, model):
    rows = len(read_selection(model).sub_vectors)
    before, plain = bits(model), case.output(model)
    with Counterfactual(model) as what_if:
        for row in (0, rows // 2, rows - 1):
            what_if.force(row, [4, 1, 7], [0.5, 0.3, 0.2])
            expected = by_hand(case, model, row, [(4, 0.5), (1, 0.3), (7, 0.2)])
            found = case.output(model)
            assert_close(found, expected, TOLERANCE)
            assert not torch.equal(found, plain)
            assert what_if.mixture(row)[0] == (4, 1, 7)
            np.testing.assert_allclose(what_if.mixture(row)[1], (0.5, 0.3, 0.2), rtol=1e-5)
            what_if.undo()
            assert_same_bits(model, before)
            assert torch.equal(case.output(model), plain)


@torch.no_grad()
def test_swapping_and_reweighting(case, model):
    before, row = bits(model), 5
    vectors, weights = Counterfactual(model).mixture(row)
    new = min(set(range(10)) - set(vectors))
    with Counterfactual(model) as what_if:
        what_if.swap(row, vectors[1], new)
        swapped = [(vectors[0], weights[0]), (new, weights[1]), (vectors[2], weights[2])]
        assert_close(case.output(model), by_hand(case, model, row, swapped), TOLERANCE)
        what_if.reweight(row, new, 0.7)
        rest = 0.3 / (weights[0] + weights[2])
        told = [(vectors[0], weights[0] * rest), (new, 0.7), (vectors[2], weights[2] * rest)]
        assert_close(case.output(model), by_hand(case, model, row, told), TOLERANCE)
        assert len(what_if.changes) == 2 and f"mixes bank vector {new}" in what_if.changes[0]
    assert_same_bits(model, before)


@torch.no_grad()
def test_a_vector_that_is_switched_off_adds_nothing(case, model):
    before, plain = bits(model), case.output(model)
    vector = int(read_selection(model).usage().argmax())
    what_if = Counterfactual(model)
    what_if.switch_off(vector)
    found = case.output(model)
    what_if.restore()
    assert_close(found, by_hand(case, model, None, None, zero=vector), TOLERANCE)
    assert not torch.equal(found, plain)
    assert_same_bits(model, before)


def test_or_the_next_best_takes_its_place(case, model):
    before, first = bits(model), read_selection(model)
    vector = int(first.usage().argmax())
    what_if = Counterfactual(model)
    what_if.switch_off(vector, next_best=True)
    barred = read_selection(model)
    assert not (barred.indices == vector).any()
    for i in np.flatnonzero((first.indices == vector).any(axis=1)):
        assert len(set(barred.indices[i]) - set(first.indices[i])) == 1
    what_if.undo()
    assert_same_bits(model, before)


@torch.no_grad()
def test_held_matrices_and_folded_weights_are_given_up(opt_case):
    model = opt_case.ours()
    scramble(model)
    model.eval()
    what_if = Counterfactual(model)
    pool = model.base_model.pool
    plain = opt_case.output(model)
    with pool.held():
        for _ in range(3):
            opt_case.output(model)
        assert pool.has_folds  # the third pass ran on W + B A
        what_if.switch_off(int(read_selection(model).usage().argmax()))
        changed = opt_case.output(model)
        what_if.undo()
        again = opt_case.output(model)
    assert (changed - plain).abs().max() > 1e-3
    assert_close(again, plain, 1e-6)


def test_changes_come_off_in_reverse_order(opt_case):
    model = opt_case.ours()
    scramble(model)
    what_if = Counterfactual(model)
    states = []
    for change in (
        lambda: what_if.force(3, [0], [1.0]),
        lambda: what_if.switch_off(0, next_best=False),
        lambda: what_if.force(3, [2, 5], [0.25, 0.75]),
    ):
        states.append(bits(model))
        change()
    sentences = what_if.changes
    for state, sentence in zip(reversed(states), reversed(sentences), strict=True):
        assert what_if.undo() == sentence
        assert_same_bits(model, state)
    assert what_if.undo() is None and what_if.changes == ()


def test_half_precision_and_errors_within_the_block_leave_no_trace(opt_case):
    model = opt_case.ours().to(torch.bfloat16)
    scramble(model)
    before = bits(model)
    with pytest.raises(KeyError), Counterfactual(model) as what_if:
        what_if.force(1, [3, 4], [0.5, 0.5])
        what_if.switch_off(3)
        what_if.switch_off(9, next_best=False)
        raise KeyError
    assert_same_bits(model, before)


def test_gradients_flow_through_a_forced_mixture(opt_case):
    model = opt_case.ours()
    scramble(model)
    with Counterfactual(model) as what_if:
        what_if.force(0, [2, 5], [0.4, 0.6])
        opt_case.output(model).sum().backward()
    layer = next(m for m in model.modules() if hasattr(m, "vblora_logits_A"))
    for parameter in (layer.vblora_logits_A["default"], layer.vblora_vector_bank["default"]):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


WRONG = {
    "row=9999": lambda w: w.force(9999, [0], [1.0]),
    "vectors 0 to 9": lambda w: w.force(0, [10], [1.0]),
    "different bank vectors, since topk=3": lambda w: w.force(0, [1, 2, 3, 4], [0.25] * 4),
    r"vectors=\[1, 1\]": lambda w: w.force(0, [1, 1], [0.5, 0.5]),
    "sum to 0.9": lambda w: w.force(0, [1, 2], [0.5, 0.4]),
    "must be 2 numbers": lambda w: w.force(0, [1, 2], [1.0]),
    "from 0 to 1": lambda w: w.force(0, [1, 2], [1.5, -0.5]),
    "weight=2": lambda w: w.reweight(0, w.mixture(0)[0][0], 2),
    "doesn't mix it; it mixes": lambda w: w.swap(0, unused(w), 0),
    "mixes it already": lambda w: w.swap(0, *w.mixture(0)[0][:2]),
    "bank vector -1": lambda w: w.switch_off(-1),
}


def unused(what_if):
    return min(set(range(10)) - set(what_if.mixture(0)[0]))


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_changes_nothing(opt_case, message):
    model = opt_case.ours()
    scramble(model)
    before, what_if = bits(model), Counterfactual(model)
    with pytest.raises(CounterfactualError, match=message):
        WRONG[message](what_if)
    assert_same_bits(model, before)
    assert what_if.changes == ()


def test_a_change_without_effect_is_refused(opt_case):
    model = opt_case.ours()
    what_if = Counterfactual(model)
    with pytest.raises(CounterfactualError, match="'third'"):
        Counterfactual(model, "third")
    model.merge_adapter()
    with pytest.raises(CounterfactualError, match="unmerge"):
        what_if.switch_off(0)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(CounterfactualError, match="disabled"):
        what_if.switch_off(0)
    model.add_adapter("other", VBLoRAConfig(**opt_case.config))
    model.set_adapter("other")
    with pytest.raises(CounterfactualError, match=r"set_adapter\('default'\)"):
        what_if.force(0, [1], [1.0])


def test_where_only_the_top_k_are_known_there_is_no_next_best(opt_case, tmp_path):
    model = opt_case.ours(save_only_topk_weights=True)
    scramble(model)
    model.save_pretrained(tmp_path)
    loaded = lab.from_pretrained(opt_case.base(), tmp_path)
    before, what_if = bits(loaded), Counterfactual(loaded)
    vector = int(read_selection(loaded).usage().argmax())
    with pytest.raises(CounterfactualError, match="next_best=False"):
        what_if.switch_off(vector, next_best=True)
    assert_same_bits(loaded, before)
    what_if.switch_off(vector)
    what_if.restore()
    assert_same_bits(loaded, before)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0, 1])
def test_a_weight_may_be_all_or_nothing(case, model, weight):
    before, row = bits(model), 5
    vectors, weights = Counterfactual(model).mixture(row)
    rest = (1 - weight) / (weights[1] + weights[2])
    others = zip(vectors[1:], weights[1:], strict=True)
    told = [(vectors[0], weight), *((v, w * rest) for v, w in others)]
    with Counterfactual(model) as what_if:
        what_if.reweight(row, vectors[0], weight)
        assert_close(case.output(model), by_hand(case, model, row, told), TOLERANCE)
    with Counterfactual(model) as what_if:
        what_if.force(row, vectors[:2], [weight, 1 - weight])
    assert_same_bits(model, before)
    with pytest.raises(CounterfactualError, match="from 0 to 1"):
        Counterfactual(model).reweight(row, vectors[0], 2 * weight - 0.5)


@torch.no_grad()
def test_a_failed_block_takes_back_its_own_changes_and_no_others(case, model):
    what_if = Counterfactual(model)
    what_if.switch_off(int(read_selection(model).usage().argmax()))
    what_if.force(5, what_if.mixture(5)[0][:1], [1])
    before, changes = bits(model), what_if.changes
    with pytest.raises(MemoryError), what_if.restored_on_error():
        what_if.force(9, what_if.mixture(9)[0][:1], [1])
        what_if.force(5, what_if.mixture(9)[0][:1], [1])
        raise MemoryError
    assert_same_bits(model, before)
    assert what_if.changes == changes
