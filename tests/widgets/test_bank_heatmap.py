"""What BankHeatmap sends to the browser: everything once, then only what changed."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import traitlets
from scripted import reweighted, selection_of, small_opt

from vblora_lab.errors import SelectionError, SessionError
from vblora_lab.inspection.chance import module_use, notice
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.updates import read_update
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model
from vblora_lab.widgets import BankHeatmap

VALUES = {
    *("indices", "weights", "usage", "entropy", "layer_entropy", "sharing", "spread"),
    "captions",  # of a few words
}


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
    assert size == rows * 2 * (2 + 4) + 16 * 4 + rows * 4 + 2 * 12 * 4 + 12 * 12 * 4


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


def test_changes_are_marked_against_the_first_selection_of_an_adapter(selection):
    widget = BankHeatmap(selection)
    later = reweighted(selection, 1)
    assert widget.captions == [[notice(selection).headline, notice(selection).details]]
    for seed in (2, 1):
        widget.update(reweighted(selection, seed))
    told = notice(later, start=selection)
    assert widget.captions == [[told.headline, told.details]]
    np.testing.assert_array_equal(
        np.frombuffer(widget.start_indices, "<u2").reshape(selection.indices.shape),
        selection.indices,
    )
    for trait, expected in (
        ("start_weights", selection.weights.ravel()),
        ("start_spread", module_use(selection).spread),
        ("spread", module_use(later).spread),
    ):
        np.testing.assert_array_equal(np.frombuffer(getattr(widget, trait), "<f4"), expected)
    widget.opened = 1
    other = selection_of(num_vectors=32)
    widget.update(other)
    assert widget.opened == -1
    np.testing.assert_array_equal(np.frombuffer(widget.start_weights, "<f4"), other.weights.ravel())
    more = selection_of(num_vectors=32, topk=3)
    widget.update(more)
    assert "start" not in widget.captions[0][1] and len(widget.start_weights) == more.weights.nbytes
    widget.selection = None
    widget.update(reweighted(other, 1))  # a new run of the same adapter begins anew
    assert "start" not in widget.captions[0][1]


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


# --- what is chosen


def test_selected_follows_what_is_pinned_and_lit(selection):
    widget = BankHeatmap(selection)
    heard = []
    widget.observe(lambda change: heard.append(change.new), "selected")
    widget.pinned_row = 3
    assert widget.selected == [3]
    vector = int(selection.indices[0, 0])
    widget.lit_vector = vector
    assert widget.selected == [i for i in range(len(selection.indices))
                               if vector in selection.indices[i]]  # fmt: skip
    widget.lit_vector = -1
    assert widget.selected == [3]
    widget.pinned_row = -1
    assert widget.selected == []
    assert len(heard) == 4


def test_selected_can_be_set(selection):
    widget = BankHeatmap(selection)
    widget.lit_vector = 2
    widget.selected = [9, 4, 4]
    assert (widget.selected, widget.lit_vector, widget.pinned_row) == ([4, 9], -1, -1)
    widget.selected = [7]
    assert widget.pinned_row == 7
    count = len(selection.indices)
    with pytest.raises(traitlets.TraitError, match=f"{count} is no sub-vector"):
        widget.selected = [count]
    assert widget.selected == [7]


def test_an_update_keeps_lit_what_mixes_the_vector_now(selection):
    widget = BankHeatmap(selection)
    widget.lit_vector = 5
    later = reweighted(selection, 1)
    widget.update(later)
    assert widget.selected == later.sharers(5).tolist()


def test_orders_are_sent_when_they_are_asked_for(selection, sent):
    widget = BankHeatmap(selection)
    sent.clear()
    widget.rows_by = "similarity"
    widget.columns_by = "usage"
    assert {name for names, _ in sent for name in names} == {
        "rows_by", "row_order", "groups", "columns_by", "column_order"
    }  # fmt: skip
    assert widget.groups == []
    order = np.frombuffer(widget.row_order, "<i4")
    np.testing.assert_array_equal(order, selection.row_order("similarity"))
    later = reweighted(selection, 1)
    widget.update(later)  # sorted by usage, so that order goes with the values
    usage = np.frombuffer(widget.column_order, "<i4")
    np.testing.assert_array_equal(usage, later.column_order("usage"))


# --- a trace


def trace_of(selection, count):
    pairs = [(10 * i, selection if i == 0 else reweighted(selection, i)) for i in range(count)]
    return SimpleNamespace(selections=tuple(pairs))


def test_a_trace_travels_as_a_stack_of_frames(selection):
    trace = trace_of(selection, 4)
    widget = BankHeatmap(trace)
    assert (widget.steps, widget.recorded, widget.frame) == ([0, 10, 20, 30], 4, 3)
    rows, k = selection.indices.shape
    shapes = {"usage": (4, 16), "entropy": (4, rows), "sharing": (4, 2, 2), "churn": (4, 2)}
    stacks = {name: np.frombuffer(getattr(widget, name), "<f4").reshape(shape)
              for name, shape in shapes.items()}  # fmt: skip
    weights = np.frombuffer(widget.weights, "<f4").reshape(4, rows, k)
    for i, (_, at) in enumerate(trace.selections):
        np.testing.assert_array_equal(weights[i], at.weights)
        for name in ("usage", "entropy", "sharing"):
            np.testing.assert_array_equal(stacks[name][i], getattr(at, name)())
        before = trace.selections[max(i - 1, 0)][1]
        np.testing.assert_allclose(stacks["churn"][i], [at.churn(before), at.churn(selection)])
        told = notice(at, start=selection if i else None)
        assert widget.captions[i] == [told.headline, told.details]
    widget.frame = 1
    assert widget.selection is trace.selections[1][1]


def test_of_a_long_trace_as_many_steps_travel_as_fit(selection, monkeypatch):
    monkeypatch.setattr("vblora_lab.widgets.bank_heatmap.widget.MOST_BYTES", 5000)
    trace = trace_of(selection, 30)
    widget = BankHeatmap(trace)
    assert widget.recorded == 30 and 2 <= len(widget.steps) < 30
    assert (widget.steps[0], widget.steps[-1]) == (0, 290)
    assert len(widget.indices + widget.weights + widget.usage + widget.entropy) < 5500


def test_a_trace_without_selections_is_refused():
    with pytest.raises(SelectionError, match="select_every"):
        BankHeatmap(SimpleNamespace(selections=()))


# --- a live model, and the bench


@pytest.fixture
def live():
    model = get_peft_model(
        small_opt(),
        VBLoRAConfig(r=2, num_vectors=16, vector_length=16, target_modules=["q_proj", "fc1"]),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model.eval()


def loss_and_text(model):
    tokens = torch.arange(12)[None]

    def evaluate():
        with torch.no_grad():
            output = model(tokens, labels=tokens)
        return output.loss, " ".join(map(str, output.logits[0].argmax(-1).tolist()))

    return evaluate


def test_a_live_model_shows_its_bank_and_an_update(live):
    widget = BankHeatmap(live)
    bank = live.base_model.vblora_vector_bank["default"].detach().numpy()
    np.testing.assert_array_equal(np.frombuffer(widget.bank, "<f4").reshape(16, 16), bank)
    for row in (0, len(widget.selection.indices) - 1):
        widget.pinned_row = row
        places = widget.selection.sub_vectors
        assert widget.module_shown == places.module[row]
        update = read_update(live, places.modules[places.module[row]])
        assert widget.delta["shape"] == list(update.shape)
        assert widget.delta["singular_values"] == update.singular_values.tolist()
        blocks = np.frombuffer(widget.delta_blocks, "<f4").reshape(widget.delta["grid"])
        np.testing.assert_array_equal(blocks, update.blocks)


def test_refresh_reads_again(live, selection):
    widget = BankHeatmap(live)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "logits" in name:
                parameter.neg_()
    widget.refresh()
    np.testing.assert_array_equal(widget.selection.indices, read_selection(live).indices)
    with pytest.raises(SelectionError, match="live model"):
        BankHeatmap(selection).refresh()


def test_the_bench_changes_measures_and_restores(live):
    evaluate = loss_and_text(live)
    loss, text = evaluate()
    state = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    widget = BankHeatmap(live, evaluate)
    assert widget.bench == {"busy": False, "error": "", "changes": []}
    widget.pinned_row = 2
    old = int(widget.selection.indices[2, 0])
    new = min(set(range(16)) - set(widget.selection.indices[2].tolist()))
    before, after = widget.try_change("swap", row=2, old=old, new=new)
    assert (before.loss, before.text) == (float(loss), text)
    assert after.loss == float(evaluate()[0]) != before.loss
    assert new in widget.selection.indices[2] and old not in widget.selection.indices[2]
    assert widget.pinned_row == 2
    assert widget.bench["after"]["loss"] == after.loss and len(widget.bench["changes"]) == 1
    before, both = widget.try_change("switch_off", vector=new)
    assert before.loss == float(loss) and both.loss not in (before.loss, after.loss)
    assert widget.try_change("undo")[1].loss == after.loss
    before, restored = widget.try_change("restore")
    assert restored == before and widget.bench["changes"] == []
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("error", [ValueError("no loss"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("kind", "arguments"), [("switch_off", {"vector": 1}), ("undo", {}), ("restore", {})]
)
def test_a_measurement_that_fails_leaves_the_changes_as_they_were(live, error, kind, arguments):
    """The change that is asked for isn't made, and those that were in force still are."""
    measure, failing = loss_and_text(live), [False]

    def evaluate():
        if failing[0]:
            raise error
        return measure()

    widget = BankHeatmap(live, evaluate)
    original = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    widget.try_change("switch_off", vector=0)
    widget.try_change("force", row=2, vectors=[3], weights=[1.0])
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    changes = widget.bench["changes"]
    failing[0] = True
    if kind == "restore":  # nothing is measured after it: let its write-back fail instead
        with pytest.raises(type(error)), widget._bench.what_if.restored_on_error():
            widget._bench.what_if.restore()
            raise error
    else:
        with pytest.raises(type(error)):
            widget.try_change(kind, **arguments)
        assert widget.bench["error"] and not widget.bench["busy"]
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert widget.bench["changes"] == changes == list(widget._bench.what_if.changes)
    failing[0] = False
    widget.try_change("restore")
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, original[name])


def test_a_change_made_before_the_first_measurement_is_measured_too(live):
    evaluate = loss_and_text(live)
    loss = float(evaluate()[0])
    widget = BankHeatmap(live, evaluate)
    widget._bench.what_if.switch_off(0)
    changed = float(evaluate()[0])
    before, after = widget.try_change("switch_off", vector=1)
    assert before.loss == loss
    assert widget.try_change("undo")[1].loss == changed != loss
    assert after.loss not in (loss, changed)


@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_model_that_trains_on_is_not_changed(live, status):
    widget = BankHeatmap(live, loss_and_text(live))
    widget._bench._session = SimpleNamespace(status=status)
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    with pytest.raises(SessionError, match=f"the session is {status}"):
        widget.try_change("switch_off", vector=0)
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_page_asks_for_changes_and_hears_of_problems(live):
    widget = BankHeatmap(live, loss_and_text(live))
    ask = widget._handle_custom_msg
    ask({"bench": "switch_off", "vector": 3, "next_best": True}, [])
    assert widget.bench["changes"] == ["bank vector 3 gives way to the next best"]
    assert not (widget.selection.indices == 3).any()
    told = dict(widget.bench)
    ask({"bench": "switch_off", "vector": 99}, [])
    assert "0 to 15" in widget.bench["error"] and not widget.bench["busy"]
    assert widget.bench["changes"] == told["changes"]
    ask({"bench": "eval"}, [])
    assert "must be one of" in widget.bench["error"]
    ask({"bench": "restore"}, [])
    assert widget.bench["error"] == "" and widget.bench["changes"] == []


def test_closing_takes_changes_back(live):
    state = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    widget = BankHeatmap(live, loss_and_text(live))
    widget.try_change("switch_off", vector=0)
    widget.close()
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_bench_needs_a_model_and_a_way_to_measure(selection, live):
    with pytest.raises(TypeError, match="live model"):
        BankHeatmap(selection, lambda: (1.0, ""))
    with pytest.raises(TypeError, match="evaluate is of type int"):
        BankHeatmap(live, 3)
    with pytest.raises(SessionError, match="no bench"):
        BankHeatmap(live).try_change("undo")


# --- what stays


@pytest.mark.parametrize("kind", ["heatmap", "usage", "entropy", "sharing", "footprint", "churn"])
def test_every_figure_has_labelled_axes(selection, kind):
    widget = BankHeatmap(trace_of(selection, 4))
    figure = widget.figure(kind)
    assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel()
    figure.savefig(io.BytesIO(), format="png")


def test_figures_that_cannot_be_say_so(selection):
    with pytest.raises(SelectionError, match="needs a trace"):
        BankHeatmap(selection).figure("footprint")
    with pytest.raises(SelectionError, match="nothing is shown"):
        BankHeatmap().figure()
    with pytest.raises(ValueError, match="must be one of modules, heatmap, footprint"):
        BankHeatmap(selection).figure("pie")


def test_the_footprint_counts_three_kinds_of_cells(selection):
    last = reweighted(selection, 1)
    figure = BankHeatmap(
        SimpleNamespace(selections=((0, selection), (9, last)))
    ).figure("footprint")  # fmt: skip
    first, final = set(), set()
    for cells, chosen in ((first, selection), (final, last)):
        cells.update((i, int(v)) for i, row in enumerate(chosen.indices) for v in row)
    drawn = [set(zip(*line.get_data(), strict=True)) for line in figure.axes[0].lines]
    assert drawn == [first - final, final - first, first & final]


def test_a_notebook_keeps_a_picture_beside_the_widget(selection):
    widget = BankHeatmap(selection)
    data, _ = widget._repr_mimebundle_()
    assert widget._ipython_display_ is None  # by which ipywidgets 7 would show no picture
    assert "application/vnd.jupyter.widget-view+json" in data
    assert base64.b64decode(data["image/png"])[:4] == b"\x89PNG"
    assert "image/png" not in BankHeatmap()._repr_mimebundle_()[0]


def test_a_page_of_nothing_is_refused_and_not_written(tmp_path):
    with pytest.raises(SelectionError, match="nothing is shown"):
        BankHeatmap().to_html(tmp_path / "map.html")
    assert not (tmp_path / "map.html").exists()
