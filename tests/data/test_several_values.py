"""A slot may have several values: none of them is lost on the way from a file to a score."""

import random

import pytest

from vblora_lab.data import format_mr, get_domain, parse_mr, read_csv, slot_error_rate, slot_errors
from vblora_lab.data.grammar import describe
from vblora_lab.data.meaning import pairs_of, values_of
from vblora_lab.data.task import Example, split_examples
from vblora_lab.errors import DataError

RESTAURANTS = get_domain("restaurants")
MR = "name[Otto], area[city centre], food[Thai], area[riverside]"
FACTS = {"name": "Otto", "area": ("city centre", "riverside"), "food": "Thai"}


def test_all_values_are_read_and_written():
    assert parse_mr(MR) == FACTS == Example(MR, ("x",)).facts
    assert format_mr(FACTS) == "name[Otto], area[city centre], area[riverside], food[Thai]"
    assert parse_mr(format_mr(FACTS)) == FACTS


def test_the_same_value_twice_is_one_value():
    assert parse_mr("name[Otto], area[riverside], area[ riverside ]") == {
        "name": "Otto",
        "area": "riverside",
    }


def test_values_and_pairs_of_facts():
    assert values_of(FACTS, "area") == ("city centre", "riverside")
    assert values_of(FACTS, "food") == ("Thai",) and values_of(FACTS, "near") == ()
    assert pairs_of(FACTS)[1:3] == (("area", "city centre"), ("area", "riverside"))


ROWS = """mr,ref
"name[Otto], area[city centre], area[riverside]",both
"name[Otto], area[riverside]",river
"area[riverside], name[Otto], area[city centre]",both in another order
"name[Otto], area[city centre]",centre
"""


def test_examples_of_different_facts_stay_apart(tmp_path):
    (tmp_path / "own.csv").write_text(ROWS, encoding="utf-8")
    both, river, centre = examples = read_csv(tmp_path / "own.csv")
    assert both.references == ("both", "both in another order")
    assert river.references == ("river",) and centre.references == ("centre",)
    assert both.mr == "name[Otto], area[city centre], area[riverside]"  # what a model is given
    task = split_examples("own", RESTAURANTS, examples)
    assert {*task.train, *task.validation, *task.test} == set(examples)


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("Otto serves Thai food by the river in the city centre.", ()),
        ("Otto serves Thai food in the city centre.", ("missing area[riverside]",)),
        ("Otto serves Thai food.", ("missing area[city centre]", "missing area[riverside]")),
        (
            "Otto serves Thai food in the old town.",
            ("wrong area[city centre]: says old town", "missing area[riverside]"),
        ),
        (
            "Otto, by the river, at the harbour, serves Thai food.",
            ("wrong area[city centre]: says harbour",),
        ),
        (
            "Otto serves Thai food at the harbour, by the river, in the city centre.",
            ("added area[harbour]",),
        ),
    ],
)
def test_errors_of_a_slot_with_two_values(text, errors):
    assert slot_errors(RESTAURANTS, FACTS, text) == errors


def test_two_names_must_both_be_said():
    facts = {"name": ("Otto", "Anna"), "parking": ("yes", "paid")}
    assert slot_errors(RESTAURANTS, facts, "Otto: yes, paid.") == ("missing name[Anna]",)


def test_each_value_counts_in_the_rate():
    texts = ["Otto serves Thai food in the city centre."]
    assert slot_error_rate(RESTAURANTS, [FACTS], texts) == pytest.approx(1 / 4)


def test_a_text_is_not_generated_of_two_values_for_one_slot():
    with pytest.raises(DataError, match=r"area has several values, city centre, riverside"):
        describe(RESTAURANTS, FACTS, random.Random(0))
