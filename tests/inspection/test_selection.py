"""Selection: coordinates and choices against a walk over the model, one sub-vector at a time."""

import math

import numpy as np
import pytest
import torch

import vblora_lab.tuner.peft as lab
from tests.cases import scramble
from vblora_lab.errors import SelectionError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.rows import row_groups
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.tuner.config import VBLoRAConfig


def walk(model):
    """(module, layer, matrix, rank, tile, logits) of each sub-vector, by plain loops."""
    base = model.get_base_model()
    for name, module in base.named_modules():
        if not hasattr(module, "vblora_logits_A"):
            continue
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        layer = numbers[0] if numbers else -1
        logits = module.vblora_logits_A["default"]
        for rank in range(logits.shape[0]):
            for tile in range(logits.shape[1]):
                yield name, layer, "A", rank, tile, logits[rank, tile]
        logits = module.vblora_logits_B["default"]
        for tile in range(logits.shape[0]):
            for rank in range(logits.shape[1]):
                yield name, layer, "B", rank, tile, logits[tile, rank]


def test_every_sub_vector_is_where_it_says(case):
    model = case.ours()
    scramble(model)
    selection = read_selection(model)
    places = selection.sub_vectors
    rows = list(walk(model))
    assert len(places) == len(rows)
    for i, (name, layer, matrix, rank, tile, logits) in enumerate(rows):
        assert places.modules[places.module[i]] == name
        found = (places.layer[i], places.matrix[i], places.rank[i], places.tile[i])
        assert found == (layer, matrix, rank, tile)
        best, indices = logits.double().topk(3)
        assert selection.indices[i].tolist() == indices.tolist()
        np.testing.assert_allclose(selection.weights[i], best.softmax(0).tolist(), rtol=1e-5)
    for name in ("module", "layer", "rank", "tile"):
        assert getattr(places, name).dtype == np.int32
    assert places.matrix.dtype == np.dtype("<U1")
    assert (selection.indices.dtype, selection.weights.dtype) == (np.int32, np.float32)


def test_labels(opt_case):
    places = read_selection(opt_case.ours()).sub_vectors
    assert places.label(0) == "layer 0 · self_attn.v_proj · A · rank 0 · tile 0"
    assert places.label(len(places) - 1) == "layer 1 · fc2 · B · rank 1 · tile 3"
    one = np.ones(1, np.int32)
    matrix = np.array(["B"])
    for name, layer, expected in (
        ("lm_head", -1, "lm_head"),
        ("3.proj", 3, "layer 3 · proj"),
        ("h.2.experts.2.up", 2, "layer 2 · experts.2.up"),
        ("3", 3, "layer 3 · 3"),
    ):
        places = SubVectors((name,), one * 0, one * layer, matrix, one, one)
        assert places.label(0) == f"{expected} · B · rank 1 · tile 1"


def test_summaries_against_counting():
    model = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 9, generator=model)
    best, indices = logits.topk(3)
    weights = best.softmax(-1)
    selection = Selection(None, 9, indices.int().numpy(), weights.numpy())
    dense = selection.dense()
    usage, counts = [0.0] * 9, [0] * 9
    for i in range(40):
        entropy = 0.0
        for index, weight in zip(indices[i].tolist(), weights[i].tolist(), strict=True):
            assert dense[i, index] == pytest.approx(weight)
            usage[index] += weight
            counts[index] += 1
            entropy -= weight * math.log(weight)
        assert selection.entropy()[i] == pytest.approx(entropy, rel=1e-5)
        assert np.count_nonzero(dense[i]) == 3
    np.testing.assert_allclose(selection.usage(), usage, rtol=1e-5)
    assert selection.counts().tolist() == counts
    assert (dense.dtype, selection.usage().dtype) == (np.float32, np.float32)
    assert (selection.counts().dtype, selection.entropy().dtype) == (np.int64, np.float32)


def test_entropy_of_certainty_and_of_equal_shares():
    weights = np.array([[1, 0], [0.5, 0.5]], np.float32)
    selection = Selection(None, 3, np.array([[0, 1], [1, 2]], np.int32), weights)
    np.testing.assert_allclose(selection.entropy(), [0, math.log(2)], rtol=1e-6)


def test_churn_counts_changed_sets_whatever_their_order():
    def chosen(*rows):
        indices = np.array(rows, np.int32)
        return Selection(None, 5, indices, np.full(indices.shape, 0.5, np.float32))

    earlier = chosen([0, 1], [2, 3], [4, 0], [1, 2])
    assert earlier.churn(earlier) == 0.0
    assert chosen([1, 0], [2, 4], [4, 0], [3, 0]).churn(earlier) == 0.5
    with pytest.raises(SelectionError, match=r"\(1, 2\) and \(4, 2\)"):
        chosen([0, 1]).churn(earlier)


def test_reading_again_with_known_coordinates(opt_case):
    model = opt_case.ours()
    first = read_selection(model)
    scramble(model)
    second = read_selection(model, sub_vectors=first.sub_vectors)
    assert second.sub_vectors is first.sub_vectors
    assert np.array_equal(second.indices, read_selection(model).indices)
    assert second.churn(first) > 0.5
    model.add_adapter("other", VBLoRAConfig(**{**opt_case.config, "r": 3}))
    with pytest.raises(SelectionError, match="coordinates"):
        read_selection(model, "other", sub_vectors=first.sub_vectors)
    with pytest.raises(SelectionError, match="'third'"):
        read_selection(model, "third")


def test_any_holder_of_layers_will_do(opt_case):
    model = opt_case.ours()
    expected = read_selection(model)
    for holder in (model.base_model, model.get_base_model(), torch.compile(model)):
        found = read_selection(holder)
        assert found.sub_vectors.modules == expected.sub_vectors.modules
        assert np.array_equal(found.indices, expected.indices)
    part = read_selection(model.get_base_model().model.decoder.layers[1])
    assert part.sub_vectors.modules[0] == "self_attn.v_proj"


def test_a_loaded_selection_is_the_stored_one(opt_case, tmp_path):
    model = opt_case.ours(save_only_topk_weights=True)
    scramble(model)
    before = read_selection(model)
    model.save_pretrained(tmp_path)
    after = read_selection(lab.from_pretrained(opt_case.base(), tmp_path))
    assert np.array_equal(after.indices, before.indices)
    np.testing.assert_allclose(after.weights, before.weights, rtol=1e-5, atol=1e-7)


# --- analysis


def random_selection(seed=0, count=60, vectors=12, k=3, layers=4):
    rng = np.random.default_rng(seed)
    weights = np.sort(rng.dirichlet(np.ones(k), count), axis=1)[:, ::-1]
    names = [f"h.{i}.{m}" for i in range(layers) for m in ("attn.q", "mlp.up")]
    module = np.sort(rng.integers(len(names), size=count)).astype(np.int32)
    places = SubVectors(
        modules=tuple(names), module=module, layer=module // 2,
        matrix=np.where(rng.random(count) < 0.5, "A", "B"),
        rank=np.zeros(count, np.int32), tile=np.arange(count, dtype=np.int32),
    )  # fmt: skip
    indices = np.argsort(rng.random((count, vectors)), axis=1)[:, :k].astype(np.int32)
    return Selection(places, vectors, indices, weights.astype(np.float32))


def test_sharing_is_the_overlap_of_what_layers_take():
    selection = random_selection()
    dense, layer = selection.dense().astype(float), selection.sub_vectors.layer
    sharing = selection.sharing()
    assert sharing.shape == (4, 4) and sharing.dtype == np.float32
    for a in range(4):
        for b in range(4):
            one, other = dense[layer == a].sum(0), dense[layer == b].sum(0)
            overlap = sum(map(min, one / one.sum(), other / other.sum()))
            assert sharing[a, b] == pytest.approx(overlap, rel=1e-5)


def test_entropy_by_layer_and_sharers():
    selection = random_selection()
    for layer, mean in enumerate(selection.entropy_by_layer()):
        of = selection.entropy()[selection.sub_vectors.layer == layer]
        assert mean == pytest.approx(of.mean(), rel=1e-5)
    for vector in range(12):
        rows = [i for i in range(60) if vector in selection.indices[i]]
        assert selection.sharers(vector).tolist() == rows


def test_orders_are_permutations_sorted_by_what_they_say():
    selection = random_selection()
    places = selection.sub_vectors
    kinds = [places.kinds.index(places.kinds[m]) for m in places.module]
    keys = {
        "layer": lambda i: (places.layer[i], places.module[i], places.matrix[i], i),
        "module": lambda i: (kinds[i], places.layer[i], places.matrix[i], i),
        "matrix": lambda i: (places.matrix[i], places.layer[i], places.module[i], i),
        "strongest": lambda i: (selection.indices[i, 0], -selection.weights[i, 0], i),
        "entropy": lambda i: (selection.entropy()[i], i),
    }
    for by, key in keys.items():
        assert selection.row_order(by).tolist() == sorted(range(60), key=key)
    by_usage = sorted(range(12), key=lambda v: (-selection.usage()[v], v))
    assert selection.column_order("usage").tolist() == by_usage
    assert selection.column_order().tolist() == list(range(12))
    for by in ("similarity", "usage"):
        assert sorted(selection.column_order(by)) == list(range(12))
    assert sorted(selection.row_order("similarity")) == list(range(60))
    with pytest.raises(SelectionError, match=r"by='size'; allowed are layer, module"):
        selection.row_order("size")
    with pytest.raises(SelectionError, match=r"by='layer'; allowed are number"):
        selection.column_order("layer")


def test_similarity_finds_a_hidden_chain():
    """Rows mix neighbours on a chain of vectors whose numbers were shuffled."""
    rng = np.random.default_rng(1)
    chain = rng.permutation(20)
    rows = rng.permutation(19)
    indices = np.stack([chain[rows], chain[rows + 1]], axis=1).astype(np.int32)
    selection = Selection(None, 20, indices, np.full((19, 2), 0.5, np.float32))
    found = rows[selection.row_order("similarity")].tolist()
    assert found in (sorted(found), sorted(found)[::-1])
    order = selection.column_order("similarity").tolist()
    assert order in (chain.tolist(), chain.tolist()[::-1])


def test_groups_follow_the_order():
    selection = random_selection()
    places = selection.sub_vectors
    for by in ("layer", "module", "matrix"):
        order, groups = selection.row_order(by), row_groups(places, by)
        for level in range(3):
            here = [g for g in groups if g.level == level]
            assert [g.first for g in here] == [0, *np.cumsum([g.rows for g in here])[:-1]]
        for group in groups:
            rows = order[group.first : group.first + group.rows]
            said = {
                "layer": ("layer", "kind", "matrix"),
                "module": ("kind", "layer", "matrix"),
                "matrix": ("matrix", "layer", "kind"),
            }[by][group.level]
            texts = {
                "layer": {f"layer {places.layer[i]}" for i in rows},
                "kind": {places.kinds[places.module[i]] for i in rows},
                "matrix": {str(places.matrix[i]) for i in rows},
            }[said]
            assert texts == {group.text}
    assert row_groups(places, "entropy") == []


def test_layers_may_have_any_number():
    """More than there are sub-vectors, and modules without a number beside them."""
    zero, layer = np.zeros(3, np.int32), np.array([11, -1, 2**31 - 1], np.int32)
    where = SubVectors(
        modules=("layers.11.q", "layers.2147483647.q", "head"),
        module=np.array([0, 2, 1], np.int32), layer=layer,
        matrix=np.array(["A", "B", "A"]), rank=zero, tile=zero,
    )  # fmt: skip
    names, block = where.blocks
    assert [names[number] for number in block] == ["layer 11", "head", "layer 2147483647"]
