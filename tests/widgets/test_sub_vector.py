"""SubVector from Python: the layer it shows, what it refuses, its picture and its page."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from traitlets import TraitError

from vblora_lab import SubVector
from vblora_lab.admixture import low_rank_matrices
from vblora_lab.errors import SelectionError
from vblora_lab.inspection.one_layer import ROW, OneLayer, example_layer


def loss_of(layer, LA, LB, bank):
    A, B = low_rank_matrices(LA, LB, bank, layer.topk)
    x, base, wanted = (torch.tensor(v, dtype=LA.dtype) for v in (layer.x, layer.base, layer.wanted))
    return (base + B @ (A @ x) - wanted).square().mean()


def trained(layer, row, steps, rate=3.0):
    """Gradient descent on one row's logits, by autograd: what is chosen at each step, losses."""
    LA, LB, bank = (
        torch.tensor(v, dtype=torch.float64) for v in (layer.logits_A, layer.logits_B, layer.bank)
    )
    LA.requires_grad_()
    chosen, losses = [], []
    for _ in range(steps):
        loss = loss_of(layer, LA, LB, bank)
        losses.append(loss.item())
        flat = LA.detach().reshape(-1, LA.shape[-1])
        chosen.append(set(flat[row].topk(layer.topk).indices.tolist()))
        (gradient,) = torch.autograd.grad(loss, LA)
        flat[row] -= rate * gradient.reshape(flat.shape)[row]
    return chosen, losses


def test_the_example_shows_how_one_vector_overtakes_another():
    """What the chapters say of it: at a step early on, and the loss nearly vanishes."""
    layer = example_layer()
    chosen, losses = trained(layer, ROW, 31)
    changes = [step for step in range(1, 31) if chosen[step] != chosen[step - 1]]
    assert changes == [4]
    assert losses[-1] < 0.01 * losses[0]
    without = float(np.square(layer.base - layer.wanted).mean())
    assert losses[0] == pytest.approx(layer.loss) and layer.loss < without / 2


def test_the_widget_holds_the_layer_that_it_was_given():
    layer = example_layer(3, r=3, in_tiles=2, out_tiles=5, num_vectors=7, vector_length=4, topk=3)
    widget = SubVector(layer, row=9)
    for name in OneLayer.arrays():
        np.testing.assert_array_equal(getattr(widget.layer, name), getattr(layer, name))
    assert (widget.topk, widget.row) == (3, 9)
    changed = layer.rows.copy()
    changed[14, 2] = 4.0  # of B: tile 2, rank 2
    widget.logits = changed.tobytes()
    widget.topk = 2
    assert widget.layer.logits_B[2, 2, 2] == 4.0 and widget.layer.topk == 2
    assert widget.layer.loss != layer.loss


def test_what_the_browser_sends_arrives():
    """ipywidgets hands over the buffers of a message as memoryviews."""
    widget = SubVector()
    rows = widget.layer.rows.copy()
    rows[3, 4] = 2.5
    bank = widget.layer.bank + 1
    widget.set_state(
        {
            "logits": memoryview(rows.tobytes()),
            "bank": memoryview(bank.tobytes()),
            "phase": "update",
        }
    )
    np.testing.assert_array_equal(widget.layer.rows, rows)
    np.testing.assert_array_equal(widget.layer.bank, bank)
    assert widget.phase == "update"


def test_what_it_refuses_changes_nothing():
    widget = SubVector()
    for name, value, error in (
        ("row", 14, SelectionError), ("row", -1, TraitError), ("topk", 11, SelectionError),
        ("logits", b"1234", SelectionError), ("topk", 0, TraitError),
        ("phase", "backward", TraitError), ("rate", -1.0, TraitError),
    ):  # fmt: skip
        before = getattr(widget, name)
        with pytest.raises(error):
            setattr(widget, name, value)
        assert getattr(widget, name) == before
    with pytest.raises(SelectionError, match="rows 0 to 13"):
        SubVector(row=14)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("topk", 11, "from 1 to 10"),
        ("topk", 0, "from 1 to 10"),
        ("x", np.zeros(31), r"x has shape \(31,\), not \(32,\)"),
        ("wanted", np.full(24, np.nan), "wanted holds numbers that aren't finite"),
        ("logits_B", np.zeros((3, 1, 10)), r"logits_B has shape \(3, 1, 10\), not \(3, 2, 10\)"),
        ("bank", np.zeros(10), r"the bank has shape \(10,\)"),
    ],
)
def test_a_layer_of_other_shapes_is_refused(field, value, words):
    with pytest.raises(SelectionError, match=words):
        dataclasses.replace(example_layer(), **{field: value})


def test_its_picture_says_in_words_what_it_shows():
    data, metadata = SubVector()._repr_mimebundle_()
    assert data["image/png"] and data["text/plain"] == "SubVector"
    alt = metadata["image/png"]["alt"]
    assert alt.startswith("One sub-vector: A · rank 0 · tile 2: of 10 logits the largest 2")
    assert SubVector(row=13).figure().alt.startswith("One sub-vector: B · rank 1 · tile 2")


def test_the_page_needs_nothing_but_itself(tmp_path):
    text = SubVector().to_html(tmp_path / "one.html", title="<x>").read_text(encoding="utf-8")
    assert "<title>&lt;x&gt;</title>" in text
    loads = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert loads and all(link.startswith("data:") for link in loads)
    assert json.dumps("A")[1:-1] in text and len(text) < 400_000


def test_its_picture_draws_the_numbers():
    layer = example_layer()
    figure = SubVector(layer, row=ROW).figure()
    logits, mixture, bank, output = figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in logits.patches], layer.rows[ROW])
    assert len({bar.get_facecolor() for bar in logits.patches}) == 3  # the others, and each of two
    (total,) = [line for line in mixture.lines if line.get_label() == "sum"]
    A, _ = low_rank_matrices(
        *map(torch.tensor, (layer.logits_A, layer.logits_B, layer.bank)), layer.topk
    )
    np.testing.assert_allclose(total.get_ydata(), A[0, 16:24], rtol=1e-5)
    tops = [bar.get_y() + bar.get_height() for bar in output.patches]
    np.testing.assert_allclose(tops, layer.output, rtol=1e-5)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (logits, mixture, bank, output))
