"""Meaning representations: what is read is what was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vblora_lab.data import format_mr, parse_mr
from vblora_lab.errors import DataError

TEXT = st.text(st.characters(exclude_characters="[],", exclude_categories=["Cs", "Cc"]), min_size=1)
WORDS = TEXT.map(str.strip).filter(bool)


def test_reads_the_example_of_the_e2e_challenge():
    mr = "name[The Eagle], eatType[coffee shop], customer rating[3 out of 5], near[Burger King]"
    assert parse_mr(mr) == {
        "name": "The Eagle",
        "eatType": "coffee shop",
        "customer rating": "3 out of 5",
        "near": "Burger King",
    }


def test_values_may_hold_commas_and_any_script():
    assert parse_mr("name[Café, Bar & 東京], priceRange[£20-25]") == {
        "name": "Café, Bar & 東京",
        "priceRange": "£20-25",
    }


@given(st.dictionaries(WORDS, WORDS, min_size=1, max_size=8))
def test_parsing_undoes_formatting(slots):
    assert parse_mr(format_mr(slots)) == slots


SEVERAL = st.lists(WORDS, min_size=2, max_size=4, unique=True).map(tuple)


@given(st.dictionaries(WORDS, WORDS | SEVERAL, min_size=1, max_size=5))
def test_parsing_undoes_formatting_of_slots_with_several_values(slots):
    assert parse_mr(format_mr(slots)) == slots


@pytest.mark.parametrize("bad", ["", "just prose", "name[Blue Spice", "name]x[", "[x]", "a[b] c[d"])
def test_what_is_no_mr_is_refused_with_an_example(bad):
    with pytest.raises(DataError, match=r"name\[Blue Spice\], area\[riverside\]"):
        parse_mr(bad)
