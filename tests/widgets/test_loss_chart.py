"""What LossChart sends: all points, each about once, whatever pieces they come in."""

import numpy as np
import pytest

from vblora_lab.widgets import LossChart
from vblora_lab.widgets.loss_chart import CHUNK


def points(chart):
    return np.frombuffer(chart.closed + chart.opened, "<f4").reshape(-1, 3)


@pytest.fixture
def losses():
    return np.random.default_rng(0).uniform(1, 5, size=CHUNK * 2 + 100).tolist()


def test_pieces_add_up_to_the_whole(losses):
    steps = list(range(1, len(losses) + 1))
    whole, pieces = LossChart(), LossChart()
    whole.append(steps, losses)
    for start in range(0, len(steps), 7):
        pieces.append(steps[start : start + 7], losses[start : start + 7])
    np.testing.assert_array_equal(points(whole), points(pieces))
    drawn = points(whole)
    np.testing.assert_array_equal(drawn[:, 0], steps)
    np.testing.assert_allclose(drawn[:, 1], losses, rtol=1e-6)
    np.testing.assert_allclose(drawn[600, 2], np.mean(losses[591:601]), rtol=1e-6)


def test_an_append_sends_the_open_chunk_alone(losses, monkeypatch):
    chart = LossChart()
    chart.append(range(1, len(losses) + 1), losses)
    sent = []
    monkeypatch.setattr(
        LossChart, "_send", lambda _self, message, buffers=None: sent.append((message, buffers))
    )
    chart.append([len(losses) + 1], [2.0])
    (message, buffers), *others = sent
    assert others == []
    assert message["buffer_paths"] == [["opened"]]
    assert sum(len(buffer) for buffer in buffers) == 101 * 3 * 4 < CHUNK * 3 * 4


def test_evaluations_and_reset():
    chart = LossChart(total_steps=100)
    chart.append([1, 2], [4.0, 3.0])
    chart.append_evaluation(0, 4.5)
    chart.append_evaluation(2, 3.5)
    assert np.frombuffer(chart.evaluations, "<f4").tolist() == [0, 4.5, 2, 3.5]
    chart.reset(total_steps=50)
    assert (chart.closed, chart.opened, chart.evaluations) == (b"", b"", b"")
    assert chart.total_steps == 50
    chart.append([1], [9.0])
    assert points(chart).tolist() == [[1, 9, 9]]


@pytest.mark.parametrize(
    ("steps", "losses", "says"),
    [([3], [1.0, 2.0], "steps has 1 values and losses 2"), ([2], [1.0], "must ascend")],
)
def test_bad_points_are_refused_and_nothing_changes(steps, losses, says):
    chart = LossChart()
    chart.append([1, 2], [4.0, 3.0])
    before = points(chart)
    with pytest.raises(ValueError, match=says):
        chart.append(steps, losses)
    np.testing.assert_array_equal(points(chart), before)
    chart.append([3], [1.0])
    assert len(points(chart)) == 3


def test_the_figure_has_the_lines_of_the_chart():
    chart = LossChart(total_steps=4, smooth_over=2)
    chart.append([1, 2, 3], [3.0, 2.0, 1.0])
    chart.append_evaluation(3, 1.5)
    each, means, evaluations = chart.figure().axes[0].lines
    np.testing.assert_array_equal(each.get_xydata(), [[1, 3], [2, 2], [3, 1]])
    np.testing.assert_array_equal(means.get_ydata(), [3, 2.5, 1.5])
    np.testing.assert_array_equal(evaluations.get_xydata(), [[3, 1.5]])
    chart.overlay({"other": LossChart()})
    labels = [line.get_label() for line in chart.figure().axes[0].lines]
    assert {"this run", "other"} <= set(labels)
    data, _ = chart._repr_mimebundle_()
    assert "image/png" in data and "image/png" not in LossChart()._repr_mimebundle_()[0]
