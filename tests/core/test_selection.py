"""Selection: coordinates and choices against a walk over the model, one sub-vector at a time."""

import math

import numpy as np
import pytest
import torch

import vblora_lab.peft as lab
from vblora_lab.config import VBLoRAConfig
from vblora_lab.errors import SelectionError
from vblora_lab.selection import Selection, SubVectors, read_selection

from .conftest import scramble


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
