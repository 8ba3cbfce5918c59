"""The figures show the numbers they were given, and every one of them."""

import dataclasses
import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

import vblora_lab as lab
from vblora_lab import plots
from vblora_lab.inspection.chance import kept_choices, module_use, notice
from vblora_lab.inspection.rows import row_groups
from vblora_lab.inspection.selection import Selection, SubVectors


def make_selection(
    layers=2, modules=("self_attn.q_proj", "fc1"), pieces=3, num_vectors=16, k=2, seed=0
):
    """Every module has `pieces` rows in A and as many in B; choices and weights are random."""
    rng = np.random.default_rng(seed)
    names = [f"model.decoder.layers.{i}.{m}" for i in range(layers) for m in modules]
    rows = 2 * pieces
    count = len(names) * rows
    module = np.repeat(np.arange(len(names), dtype=np.int32), rows)
    logits = rng.normal(size=(count, num_vectors))
    indices = np.argsort(-logits, axis=1)[:, :k].astype(np.int32)
    chosen = np.exp(np.take_along_axis(logits, indices, axis=1))
    return Selection(
        sub_vectors=SubVectors(
            modules=tuple(names),
            module=module,
            layer=(module // len(modules)).astype(np.int32),
            matrix=np.tile(np.repeat(np.array(["A", "B"], "<U1"), pieces), len(names)),
            rank=np.tile(np.arange(pieces, dtype=np.int32), 2 * len(names)),
            tile=np.zeros(count, np.int32),
        ),
        num_vectors=num_vectors,
        indices=indices,
        weights=(chosen / chosen.sum(axis=1, keepdims=True)).astype(np.float32),
    )


@pytest.fixture
def trace():
    rng = np.random.default_rng(1)
    return SimpleNamespace(
        steps=np.arange(1, 51, dtype=np.int32),
        losses=rng.uniform(1, 4, 50).astype(np.float32),
        eval_steps=np.array([0, 50], np.int32),
        eval_losses=np.array([4.0, 1.5], np.float32),
        base="mini-opt",
    )


def cells(axes):
    """Where the heatmap's cells lie and what they are worth: columns, rows, weights."""
    (drawn,) = [c for c in axes.collections if c.get_array() is not None]
    centres = np.array([path.vertices[:4].mean(axis=0) for path in drawn.get_paths()])
    return centres[:, 0], centres[:, 1], np.asarray(drawn.get_array()), drawn


def test_smooth_is_the_mean_of_the_last_losses():
    losses = np.random.default_rng(2).normal(size=37)
    by_hand = [losses[max(0, i - 9) : i + 1].mean() for i in range(37)]
    np.testing.assert_allclose(plots.smooth(losses, over=10), by_hand, rtol=1e-12)
    assert plots.smooth(np.array([])).shape == (0,)


def test_loss_curve_draws_every_loss_and_evaluation(trace):
    (axes,) = plots.loss_curve(trace).axes
    each, mean, evaluations = axes.lines
    np.testing.assert_array_equal(each.get_xydata().T, [trace.steps, trace.losses])
    np.testing.assert_allclose(mean.get_ydata()[-1], trace.losses[-10:].mean(), rtol=1e-6)
    np.testing.assert_array_equal(evaluations.get_ydata(), trace.eval_losses)
    assert axes.get_xlabel() == "training step"
    assert axes.get_ylabel() == "loss (nats per token)"
    assert "validation" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_loss_curve_without_evaluations_names_none(trace):
    trace.eval_steps = trace.eval_losses = np.array([])
    (axes,) = plots.loss_curve(trace).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["each batch", "mean of the last 10"]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_heatmap_draws_exactly_dense(k):
    selection = make_selection(k=k)
    axes, bar = plots.selection_heatmap(selection).axes
    columns, rows, weights, _ = cells(axes)
    drawn = np.zeros_like(selection.dense())
    drawn[np.rint(rows).astype(int), np.rint(columns).astype(int)] = weights
    np.testing.assert_array_equal(drawn, selection.dense())
    assert axes.get_xlabel() == "bank vector"
    assert "sub-vector" in axes.get_ylabel()
    assert "not chosen" in bar.get_ylabel()


def test_heatmap_labels_layers_modules_and_matrices():
    axes, _ = plots.selection_heatmap(make_selection()).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("layer 0") == texts.count("layer 1") == 1
    assert texts.count("q_proj") == texts.count("fc1") == 2
    assert texts.count("A") == texts.count("B") == 4


def test_heatmap_has_modules_in_the_order_of_use():
    """As labels do: rows of keys come after those of queries, whatever the model's code says."""
    selection = make_selection(modules=("k_proj", "q_proj"))
    _, first, count, _ = next(g for g in row_groups(selection.sub_vectors) if g.text == "q_proj")
    assert first == 0
    queries = selection.sub_vectors.module == 1
    np.testing.assert_array_equal(selection.row_order()[:count], np.flatnonzero(queries))
    drawn = cells(plots.selection_heatmap(selection).axes[0])
    within = np.rint(drawn[1]).astype(int) < count
    assert sorted(drawn[2][within]) == sorted(selection.weights[queries].ravel())


def test_modules_are_drawn_beside_chance():
    first = make_selection(modules=("k_proj", "q_proj"))
    last = make_selection(modules=("k_proj", "q_proj"), seed=1)
    last.indices[:4, 0] = np.where(last.indices[:4, 1] == 5, last.indices[:4, 0], 5)
    above, body, bar, kept = plots.module_heatmap(last, start=first).axes
    use = module_use(last)
    np.testing.assert_allclose(body.images[0].get_array(), use.excess[[1, 0, 3, 2]])
    names = [label.get_text() for label in body.get_yticklabels()]
    assert names == ["layer 0 · q_proj", "layer 0 · k_proj", "layer 1 · q_proj", "layer 1 · k_proj"]
    heights = [bar.get_height() for bar in above.patches[:16]]
    np.testing.assert_allclose(heights, last.usage(), rtol=1e-5)
    new = (use.stands_out & ~module_use(first).stands_out)[[1, 0, 3, 2]]
    assert new[1, 5]
    marks = {(int(x), int(y)) for x, y in zip(*body.lines[-1].get_data(), strict=True)}
    assert marks == {(int(column), int(row)) for row, column in zip(*np.nonzero(new), strict=True)}
    share = [patch.get_width() for patch in kept.patches]
    rows = kept_choices(last, first).reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(share, rows[[1, 0, 3, 2]])
    assert body.get_xlabel() == "bank vector" and "chance" in bar.get_xlabel()
    assert len(plots.module_heatmap(last).axes) == 3  # and no bars of what was kept


def test_every_cell_of_3456_rows_is_visible_in_the_png():
    selection = make_selection(layers=12, modules=tuple("abcdef"), pieces=24, num_vectors=256)
    assert len(selection.sub_vectors) == 3456
    figure = plots.selection_heatmap(selection)
    png, shown = figure._repr_png_()
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert abs(image.shape[0] - 2 * shown["height"]) <= 1  # two pixels for each one shown
    assert abs(image.shape[1] - 2 * shown["width"]) <= 1

    FigureCanvasAgg(figure)
    figure.set_dpi(192)
    figure.canvas.draw()
    axes = figure.axes[0]
    columns, rows, _, _ = cells(axes)
    x, y = axes.transData.transform(np.stack([columns, rows], axis=1)).astype(int).T
    rendered = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    at_cells = rendered[rendered.shape[0] - 1 - y, x].astype(int)
    assert (at_cells.sum(axis=1) < 3 * 235).all()  # none is lost in white


def test_rows_of_two_modules_with_one_ending_keep_their_longer_names():
    selection = make_selection(layers=1, modules=("attn.c_proj", "mlp.c_proj", "mlp.c_fc"))
    groups = row_groups(selection.sub_vectors)
    assert [g.text for g in groups if g.level == 1] == ["attn.c_proj", "mlp.c_proj", "c_fc"]
    assert [(g.first, g.rows) for g in groups if g.level == 0] == [(0, 18)]
    assert [(g.first, g.rows) for g in groups if g.level == 2] == [(i, 3) for i in range(0, 18, 3)]


def test_modules_outside_any_layer_stand_alone():
    rows = make_selection(layers=1).sub_vectors
    nowhere = SubVectors(
        modules=("head", "tail"), module=rows.module, layer=np.full(len(rows), -1, np.int32),
        matrix=rows.matrix, rank=rows.rank, tile=rows.tile,
    )  # fmt: skip
    groups = row_groups(nowhere)
    assert [g.text for g in groups if g.level == 0] == ["", ""]
    assert [g.text for g in groups if g.level == 1] == ["head", "tail"]


def test_usage_histogram_draws_usage():
    selection = make_selection()
    (axes,) = plots.usage_histogram(selection).axes
    np.testing.assert_allclose(
        [bar.get_height() for bar in axes.patches], selection.usage(), rtol=1e-6
    )
    used = len(np.unique(selection.indices))
    assert axes.get_title(loc="left") == f"{used} of 16 bank vectors are in use"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bank vector", "summed weight")


def test_colours_darken_steadily_and_never_look_like_nothing():
    shades = np.array([to_rgb(plots.WEIGHTS(x)) for x in np.linspace(0, 1, 50)])
    linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 0).all()
    assert luminance[0] < 0.7


def test_a_figure_is_shown_with_its_text_alternative():
    figure = plots.usage_histogram(make_selection())
    figure.alt = "bars"
    assert figure._repr_png_()[1]["alt"] == "bars"


def test_every_figure_says_in_words_what_it_shows(trace):
    first, last = make_selection(), make_selection()
    last.indices[0] = [int(i) for i in range(16) if i not in first.indices[0]][:2]
    count = len(last.indices)
    headline = notice(last, first).headline
    words = {
        plots.loss_curve(trace): f"from {trace.losses[0]:.2f} to {trace.losses[-10:].mean():.2f}",
        plots.selection_heatmap(last): f"{count} sub-vectors as rows, 16 bank vectors",
        plots.module_heatmap(last, first): f"rows, 16 bank vectors as columns. {headline}",
        plots.usage_histogram(last): f"vector {last.usage().argmax()} most",
        plots.footprint(first, last): "first choice only 2, final choice only 2",
        plots.entropy_by_layer(last): f"layer 1 {last.entropy_by_layer()[1]:.2f}",
        plots.layer_sharing(last): f"different ones from {last.sharing()[0, 1]:.2f}",
        plots.churn_curve([(0, first), (1, last)]): f"In the end {1 / count:.0%}",
    }
    for figure, expected in words.items():
        assert expected in figure._repr_png_()[1]["alt"]


def test_figures_need_no_pyplot(tmp_path):
    code = (
        "import sys; from vblora_lab import plots; import numpy as np\n"
        "from types import SimpleNamespace as N\n"
        "t = N(steps=[1, 2], losses=np.ones(2), eval_steps=[], eval_losses=[], base='')\n"
        "plots.loss_curve(t)._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_between_dollars_is_no_formula(trace):
    name = r"$\price{$"  # Matplotlib would refuse it
    chosen = make_selection()
    rows = chosen.sub_vectors
    modules = tuple(f"{name}.{module}" for module in rows.modules)
    chosen = dataclasses.replace(chosen, sub_vectors=dataclasses.replace(rows, modules=modules))
    other = SimpleNamespace(**vars(trace) | {"base": name})
    figures = [
        plots.loss_curve(other), plots.loss_curves({name: other, "plain": trace}),
        plots.selection_heatmap(chosen), plots.entropy_by_layer(chosen),
        plots.layer_sharing(chosen), plots.module_heatmap(chosen),
    ]  # fmt: skip
    for figure in figures:
        figure._repr_png_()
    texts = {text.get_text() for text in figures[0].findobj(Text)}
    assert plots.literal(name) in texts


def test_no_number_of_a_plan_hides_the_dot_that_it_belongs_to():
    with torch.device("meta"):  # large, so that the axis is long
        model = torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8), "w": torch.nn.Linear(9999, 9999)})
    for length in (4, 3):  # it fits, and it doesn't: then LoRA's numbers are 0
        plan = lab.plan(model, lab.VBLoRAConfig(vector_length=length, target_modules=["q"]))
        figure = plots.plan_figure(plan)
        figure.draw_without_rendering()
        for axes in figure.axes[:2]:
            dots = axes.collections[-1]
            reach = (dots.get_sizes()[0] ** 0.5 / 2 + 1) * figure.dpi / 72
            at = axes.transData.transform(dots.get_offsets())
            for (x, _), text in zip(at, axes.texts, strict=True):
                assert text.get_bbox_patch().get_window_extent().x0 > x + reach
                assert x - reach > axes.get_window_extent().x0
