"""The figures of the course: they draw the numbers that they are given, with words for both."""

import numpy as np
import pytest
from torch import nn

import vblora_lab as lab
from vblora_lab.course import figures, paper
from vblora_lab.train import Repeats, Result

RNG = np.random.default_rng(0)


def plans():
    layers = nn.ModuleList(
        nn.ModuleDict({"q": nn.Linear(8, 8), "v": nn.Linear(8, 8)}) for _ in "01"
    )
    model = nn.ModuleDict({"layers": layers, "head": nn.Linear(8, 4)})
    return {
        name: lab.plan(model, lab.VBLoRAConfig(vector_length=4, target_modules=targets))
        for name, targets in {"both": ["q", "v"], "one": ["v", "head"]}.items()
    }


STEPS = {
    "small": {"frozen base": 2.0, "PEFT LoRA": 3.0, "ours": 2.5, "captured": 1.0},
    "large": {"frozen base": 40.0, "PEFT LoRA": 50.0, "ours": 44.0},
}
REPEATS = Repeats(
    {
        "base alone": [Result(0, 0, loss=2.0, slot_error_rate=0.7)],
        "small": [Result(9, 100, loss=x, slot_error_rate=0.1) for x in (0.5, 0.7)],
        "large": [Result(9, 1000, loss=0.4, slot_error_rate=0.05)],
    }
)
FIGURES = {
    "rank_one_terms": lambda: figures.rank_one_terms(
        RNG.normal(size=(3, 6)), RNG.normal(size=(4, 3))
    ),
    "cut_matrices": lambda: figures.cut_matrices(
        RNG.integers(5, size=(2, 3, 2)), RNG.integers(5, size=(4, 2, 2)), 5, 4
    ),
    "lines": lambda: figures.lines(
        [1, 10], {"a": [1, 2], "b": [3, 4]}, xlabel="x", ylabel="y", title="t", alt="two", log="x"
    ),
    "stacked_bytes": lambda: figures.stacked_bytes({"f": {"bank": 30, "logits": 12}}, "t"),
    "step_times": lambda: figures.step_times(STEPS, "t"),
    "quality_against_bytes": lambda: figures.quality_against_bytes(REPEATS, "t"),
    "scores_of_the_paper": lambda: figures.scores_of_the_paper(paper.TABLES, paper.SOURCE),
    "adapted_modules": lambda: figures.adapted_modules(plans()),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled_and_the_picture_has_words(name):
    figure = FIGURES[name]()
    png, metadata = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert len(metadata["alt"]) > 2
    assert all(axes.get_xlabel() for axes in figure.axes if "colorbar" not in axes.get_label())
    assert any(axes.get_ylabel() for axes in figure.axes)


def test_terms_add_up_to_the_product():
    A, B = RNG.normal(size=(3, 6)), RNG.normal(size=(4, 3))
    *terms, total = [axes.images[0].get_array() for axes in figures.rank_one_terms(A, B).axes[:4]]
    np.testing.assert_allclose(total, B @ A)
    np.testing.assert_allclose(sum(terms), B @ A)
    assert {np.linalg.matrix_rank(term) for term in terms} == {1}


def test_every_sub_vector_bears_its_bank_vectors():
    chosen_A, chosen_B = np.array([[[0, 2], [1, 2]]]), np.array([[[3, 0]], [[2, 1]], [[2, 3]]])
    in_A, in_B, bank = figures.cut_matrices(chosen_A, chosen_B, 4, 4).axes
    assert [text.get_text() for text in in_A.texts] == ["0+2", "1+2"]
    assert [text.get_text() for text in in_B.texts] == ["3+0", "2+1", "2+3"]
    assert [text.get_text() for text in bank.texts if text.get_fontweight() == "bold"] == ["2"]
    assert (in_A.get_xlim(), in_B.get_ylim()) == ((0, 8), (12, 0))


def test_parts_are_stacked_end_to_end():
    rows = {"full": {"bank": 30, "logits": 12}, "small": {"bank": 30, "choices": 2}}
    (axes,) = figures.stacked_bytes(rows, "t").axes
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert ends == [(0, 30), (30, 42), (0, 30), (30, 32)]
    assert [text.get_text() for text in axes.texts] == ["42", "32"]


def test_a_square_is_filled_where_a_plan_adapts():
    both, one = figures.adapted_modules(plans()).axes
    assert [label.get_text() for label in both.get_yticklabels()] == ["q", "v"]
    for axes, expected in ((both, {(0, 0), (0, 1), (1, 0), (1, 1)}), (one, {(0, 1), (1, 1)})):
        filled = {box.get_xy() for box in axes.patches if box.get_facecolor()[:3] != (1, 1, 1)}
        assert filled == expected
        assert len(axes.patches) == 4  # the head is in no layer


def test_steps_are_drawn_beside_the_frozen_base():
    (axes,) = figures.step_times(STEPS, "t").axes
    dots = {
        line.get_label(): list(zip(*line.get_data(), strict=True))
        for line in axes.lines
        if line.get_marker() != "None"
    }
    assert dots == {
        "PEFT LoRA": [(1.5, 0), (1.25, 1)],
        "ours": [(1.25, 0), (1.1, 1)],
        "captured": [(0.5, 0)],
    }
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "small\n(base 2 ms)",
        "large\n(base 40 ms)",
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["frozen base", *dots]


def test_quality_is_at_the_mean_with_a_bar_of_one_deviation():
    losses, slots = figures.quality_against_bytes(REPEATS, "t").axes
    small, large = losses.containers
    assert (small.lines[0].get_xdata()[0], small.lines[0].get_ydata()[0]) == (100, 0.6)
    (bar,) = small.lines[2]
    low, high = bar.get_segments()[0][:, 1]
    np.testing.assert_allclose([low, high], [0.6 - 0.02**0.5, 0.6 + 0.02**0.5])
    assert large.lines[0].get_ydata()[0] == 0.4 and not large.has_yerr
    labels = [text.get_text() for text in slots.get_legend().get_texts()]
    assert labels == ["small", "large"]  # what stores nothing has no place on a logarithmic axis


def test_logarithmic_axes_are_labelled_in_plain_numbers():
    def labels(last):
        figure = figures.lines(
            [1, 2], {"a": [30_000, last]}, xlabel="x", ylabel="y", title="t", alt="a", log="y"
        )
        figure.draw_without_rendering()
        axis = figure.axes[0].yaxis
        low, high = axis.get_view_interval()
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        return {t.label1.get_text() for t in ticks if low <= t.get_loc() <= high} - {""}

    assert labels(400_000) == {"50,000", "100,000", "200,000"}
    assert labels(40_000_000) == {"100,000", "1,000,000", "10,000,000"}
