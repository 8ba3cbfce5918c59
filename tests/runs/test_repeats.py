"""Several seeds a method: means and deviations, and the tables of them."""

import math
import statistics

import pytest

from vblora_lab.train import Comparison, Repeats, Result

LOSSES = {"A": [0.5, 0.7, 0.75], "B": [0.4]}


@pytest.fixture
def repeats():
    about = {"base": "mini-opt", "task": "restaurants", "steps": 4}
    comparisons = [
        Comparison(
            {n: Result(10, 40, loss=x[seed]) for n, x in LOSSES.items() if len(x) > seed},
            {},
            {**about, "seed": seed},
        )
        for seed in range(3)
    ]
    return Repeats.of(comparisons)


def test_means_and_deviations_are_those_of_the_runs(repeats):
    for name, losses in LOSSES.items():
        assert repeats.values(name, "loss") == losses
        assert repeats.mean(name, "loss") == pytest.approx(statistics.mean(losses))
    assert repeats.deviation("A", "loss") == pytest.approx(statistics.stdev(LOSSES["A"]))
    assert repeats.error("A", "loss") == pytest.approx(statistics.stdev(LOSSES["A"]) / 3**0.5)
    assert math.isnan(repeats.deviation("B", "loss")) and math.isnan(repeats.error("B", "loss"))
    assert math.isnan(repeats.mean("A", "bleu"))


def test_the_table_says_how_many_runs_and_what_they_share(repeats):
    assert str(repeats).splitlines()[0] == "mini-opt · restaurants · 4 steps"  # and no seed
    first, second = repeats.rows()
    assert first == ("A", "40", "0.650 ± 0.132", "–", "–", "3")
    assert second == ("B", "40", "0.400", "–", "–", "1")
    page = repeats._repr_html_()
    assert all(cell in page for cell in (*first, *Repeats.HEAD))
    assert page.count("<tr ") == 3


def test_no_comparison_is_an_empty_table():
    assert str(Repeats.of([])).split() == " ".join(Repeats.HEAD).split()
