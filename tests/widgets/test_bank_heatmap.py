"""What BankHeatmap sends to the browser: everything once, then only what changed."""

import numpy as np
import pytest
from scripted import reweighted, selection_of

from vblora_lab.widgets import BankHeatmap

VALUES = {"indices", "weights", "usage", "entropy", "layer_entropy", "sharing"}


@pytest.fixture
def sent(monkeypatch):
    """Every state message as (trait names, bytes in buffers)."""
    messages = []

    def record(_widget, message, buffers=None):
        paths = message.get("buffer_paths", [])
        names = {*message.get("state", {}), *(path[0] for path in paths)}
        messages.append((names, sum(len(buffer) for buffer in buffers or [])))

    monkeypatch.setattr(BankHeatmap, "_send", record)
    return messages


def test_traits_hold_the_selection(selection):
    widget = BankHeatmap(selection)
    rows, k = selection.indices.shape
    np.testing.assert_array_equal(
        np.frombuffer(widget.indices, "<u2").reshape(rows, k), selection.indices
    )
    np.testing.assert_array_equal(
        np.frombuffer(widget.weights, "<f4").reshape(rows, k), selection.weights
    )
    np.testing.assert_allclose(
        np.frombuffer(widget.usage, "<f4"), selection.dense().sum(axis=0), rtol=1e-5
    )
    assert widget.num_vectors == 16
    assert widget.selection is selection


def test_coordinates_name_every_row_as_the_selection_does(selection):
    widget = BankHeatmap(selection)
    coordinates = np.frombuffer(widget.coordinates, "<i4").reshape(-1, 5)
    named = [
        f"{widget.modules[module]} · {'AB'[matrix]} · rank {rank} · tile {tile}"
        for module, matrix, rank, tile, _ in coordinates
    ]
    rows = selection.sub_vectors
    assert named == [rows.label(i) for i in range(len(rows))]


def test_groups_cover_all_rows_at_every_level(selection):
    widget = BankHeatmap(selection)
    for level in range(3):
        edges = [(first, count) for at, first, count, _ in widget.groups if at == level]
        assert sum(count for _, count in edges) == len(selection.sub_vectors)
        assert [first for first, _ in edges] == list(np.cumsum([0] + [c for _, c in edges])[:-1])


def test_an_update_is_one_small_message_without_coordinates(sent):
    selection = selection_of(layers=12, vector_length=4, r=4, target_modules="all-linear")
    rows = len(selection.sub_vectors)
    assert rows > 3456
    widget = BankHeatmap(selection)
    sent.clear()
    widget.update(reweighted(selection, 1))
    assert len(sent) == 1
    names, size = sent[0]
    assert names == VALUES
    assert size == rows * 2 * (2 + 4) + 16 * 4 + rows * 4 + 12 * 4 + 12 * 12 * 4


def test_rows_of_an_equal_adapter_are_not_sent_again(sent):
    widget = BankHeatmap(selection_of())
    sent.clear()
    widget.selection = reweighted(selection_of(), 3)  # read again: equal rows, another object
    assert [names for names, _ in sent] == [VALUES]


def test_another_adapter_is_shown_whole_and_unpins():
    widget = BankHeatmap(selection_of())
    widget.pinned_row, widget.lit_vector = 3, 5
    widget.update(reweighted(selection_of(), 1))
    assert (widget.pinned_row, widget.lit_vector) == (3, 5)
    other = selection_of(num_vectors=32)
    widget.update(other)
    assert (widget.pinned_row, widget.lit_vector) == (-1, -1)
    assert widget.num_vectors == 32


def test_a_bank_beyond_16_bits_uses_wider_indices():
    selection = selection_of(num_vectors=2**16 + 1, target_modules=["q_proj"], layers=1)
    selection.indices[0, 0] = 2**16
    widget = BankHeatmap(selection)
    np.testing.assert_array_equal(np.frombuffer(widget.indices, "<u4"), selection.indices.ravel())


def test_none_clears(selection):
    widget = BankHeatmap(selection)
    widget.pinned_row = 2
    widget.selection = None
    assert widget.selection is None
    assert widget.coordinates == widget.indices == widget.weights == widget.usage == b""
    assert widget.groups == widget.modules == []
    assert widget.pinned_row == -1


def test_anything_else_is_refused_and_nothing_changes(selection, opt):
    widget = BankHeatmap(selection)
    before = widget.get_state()
    with pytest.raises(TypeError, match=r"OPTForCausalLM.*read_selection"):
        widget.selection = opt
    assert widget.get_state() == before
    assert widget.selection is selection
