"""What chance would give, against drawing it with plain loops."""

import random
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import pytest

from vblora_lab.errors import SelectionError
from vblora_lab.inspection import chance
from vblora_lab.inspection.chance import kept_choices, module_use, modules_of, notice
from vblora_lab.inspection.rows import row_groups
from vblora_lab.inspection.selection import Selection, SubVectors

H, K = 12, 2
NAMES = tuple(f"decoder.layers.{i}.self_attn.{m}_proj" for i in (0, 1) for m in "kvq")
ROWS = 20  # of each module


def selection_of(names=NAMES, rows=ROWS, h=H, k=K, seed=0) -> Selection:
    rng = np.random.default_rng(seed)
    module = np.repeat(np.arange(len(names), dtype=np.int32), rows)
    layer = np.array([int(name.split(".")[2]) for name in names], np.int32)[module]
    places = np.zeros(len(module), np.int32)
    sub_vectors = SubVectors(names, module, layer, np.full(len(module), "A"), places, places)
    indices = np.argsort(rng.random((len(module), h)), axis=1)[:, :k].astype(np.int32)
    weights = np.sort(rng.dirichlet(np.ones(k), len(module)), axis=1)[:, ::-1].astype(np.float32)
    return Selection(sub_vectors, h, indices, weights)


def drawn(selection: Selection, rounds: int):
    """Modules by bank vectors, again and again: weights stay, and whose they are is drawn anew."""
    generator = random.Random(1)
    for _ in range(rounds):
        taken = np.zeros((len(selection.sub_vectors.modules), selection.num_vectors))
        for module, weights in zip(selection.sub_vectors.module, selection.weights, strict=True):
            vectors = generator.sample(range(selection.num_vectors), len(weights))
            taken[module, vectors] += weights
        yield taken


def test_mean_and_spread_are_those_of_drawing():
    selection = selection_of()
    use = module_use(selection)
    rounds = np.array(list(drawn(selection, 400)))  # (rounds, modules, vectors)
    for module in range(len(NAMES)):
        cells = rounds[:, module].ravel()
        assert use.expected[module] == pytest.approx(cells.mean(), rel=1e-5)
        assert use.spread[module] == pytest.approx(cells.std(), rel=0.04)
    above = (use.weights - use.expected[:, None]) / use.spread[:, None]
    np.testing.assert_allclose(use.excess, above, rtol=1e-6)
    np.testing.assert_allclose(use.weights.sum(axis=1), ROWS, rtol=1e-5)
    np.testing.assert_allclose(use.weights.sum(axis=0), selection.usage(), rtol=1e-5)


def test_what_a_notice_calls_chance_is_what_drawing_gives():
    selection = selection_of(h=30)
    told, use = notice(selection), module_use(selection)
    shares, most, outstanding = [], [], []
    for taken in drawn(selection, 300):
        usage = sorted(taken.sum(axis=0), reverse=True)
        shares.append(sum(usage[:6]) / sum(usage))  # a fifth of 30
        most.append(usage[0])
        limit = use.expected + chance.STANDS_OUT * use.spread
        outstanding.append(float((taken > limit[:, None]).sum()))
    assert told.vectors == 6
    assert told.share_by_chance == pytest.approx(mean(shares), abs=0.005)
    assert told.share_spread == pytest.approx(stdev(shares), rel=0.3)
    assert told.most_by_chance == pytest.approx(mean(most), rel=0.03)
    assert told.outstanding_by_chance == pytest.approx(mean(outstanding), rel=0.2)


def test_a_selection_by_chance_is_called_that():
    told = notice(selection_of())
    assert told.headline == (
        f"2 of 12 bank vectors carry {told.share:.0%} of the weight, as by chance "
        f"({told.share_by_chance:.0%})."
    )
    assert told.strongest is None and told.kept is None
    assert "most of all" not in told.details and "start" not in told.details


def test_one_that_is_not_says_where():
    plain = selection_of()
    indices = plain.indices.copy()
    indices[:, 0] = np.where(indices[:, 1] == 7, 3, 7)  # all want vector 7, and vector 3 beside it
    indices[:ROWS, 1] = np.where(indices[:ROWS, 0] == 5, 4, 5)  # and the first module 5
    told = notice(replace(plain, indices=indices), start=plain)
    assert told.headline == (
        f"2 of 12 bank vectors carry {told.share:.0%} of the weight; "
        f"chance: {told.share_by_chance:.0%}."
    )
    assert told.share > 0.5 > told.share_by_chance and told.most_used == 7
    assert told.most == pytest.approx(replace(plain, indices=indices).usage()[7], rel=1e-5)
    name, vector, weight, by_chance = told.strongest
    assert vector == 7 and name in plain.sub_vectors.module_labels
    assert weight > 5 * by_chance
    assert f"most of all vector 7 in {name}" in told.details
    kept = np.mean([len({*a} & {*b}) / K for a, b in zip(plain.indices, indices, strict=True)])
    assert told.kept == pytest.approx(kept)
    assert f"Kept since the start: {kept:.0%} of the choices (chance: 17%)" in told.details


def test_equal_shares_of_the_whole_bank_leave_nothing_to_chance():
    """Every choice is the same then: no spread to divide by."""
    even = replace(selection_of(h=2), weights=np.full((len(NAMES) * ROWS, 2), 0.5, np.float32))
    use = module_use(even)
    assert np.all(use.spread == 0) and np.all(use.excess == 0)
    assert notice(even).outstanding == 0


def test_a_large_model_is_shown_by_its_layers():
    names = tuple(f"decoder.layers.{i}.{m}" for i in range(33) for m in ("up", "down"))
    large = selection_of(names, rows=2)
    groups, number = modules_of(large.sub_vectors)
    assert groups == tuple(f"layer {i}" for i in range(33))
    assert number.tolist() == large.sub_vectors.layer.tolist()
    assert module_use(large).weights.shape == (33, H)


def test_modules_stand_in_the_order_of_use():
    """OPT's code has keys, values, queries; whatever is no such projection keeps its place."""

    def order(*names):
        rows = selection_of(tuple(f"decoder.layers.0.{name}" for name in names), rows=1)
        return [names[i] for i in np.argsort(rows.sub_vectors.module_places)]

    opt = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1")
    assert order(*opt) == [opt[2], opt[0], opt[1], *opt[3:]]
    assert order("a.key", "a.query", "b.value", "b.query") == [
        "a.query",
        "a.key",
        "b.query",
        "b.value",
    ]
    for kept in (
        ("up", "quiet", "attention"),
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("v_proj",),
    ):
        assert order(*kept) == [*kept]
    groups = row_groups(selection_of().sub_vectors)
    assert [group.text for group in groups if group.level == 1] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ] * 2
    first = selection_of().row_order()[0]
    assert NAMES[selection_of().sub_vectors.module[first]].endswith("0.self_attn.q_proj")


def test_another_adapter_is_no_start():
    with pytest.raises(SelectionError, match=r"\(120, 2\) and \(60, 2\)"):
        kept_choices(selection_of(), selection_of(rows=10))
