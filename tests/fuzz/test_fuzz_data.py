"""CSV files, meaning representations and texts at random: what they say, or a `DataError`."""

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.amount import cases
from vblora_lab.data import format_mr, get_domain, parse_mr, read_csv, slot_errors
from vblora_lab.data.meaning import pairs_of
from vblora_lab.errors import DataError

SLOTS = ["name", "area", "food", "near", "priceRange", "customer rating", "familyFriendly", "x"]
VALUES = [
    "Aroma",
    "riverside",
    "city centre",
    "less than £20",
    "yes",
    "no",
    "3 out of 5",
    "é ü",
    "",
]
mrs = st.lists(st.tuples(st.sampled_from(SLOTS), st.sampled_from(VALUES)), min_size=1, max_size=6)
texts = st.text(st.characters(codec="utf-8"), max_size=60)


def written(pairs):
    return ", ".join(f"{slot}[{value}]" for slot, value in pairs)


@cases(60, share=0.02)
@given(mrs)
def test_an_mr_keeps_every_value_once(pairs):
    facts = parse_mr(written(pairs))
    assert set(pairs_of(facts)) == set(pairs)
    assert parse_mr(format_mr(facts)) == facts


@cases(60, share=0.02)
@given(st.one_of(texts, st.text("nam[] ,]\t", max_size=80)))
def test_any_text_is_an_mr_or_isn_t(text):
    try:
        facts = parse_mr(text)
    except DataError:
        return
    assert facts and parse_mr(format_mr(facts)) == facts


@cases(40, share=0.02)
@given(mrs, texts)
def test_any_text_has_its_errors_named(pairs, text):
    errors = slot_errors(get_domain("restaurants"), parse_mr(written(pairs)), text)
    assert all(isinstance(error, str) and error for error in errors)


@cases(60, share=0.03)
@given(st.lists(st.tuples(mrs.map(written), texts), min_size=1, max_size=5), st.booleans())
def test_a_csv_file_says_what_python_s_own_reader_says(rows, mark):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("mr", "ref"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        path.write_text(text.getvalue(), encoding="utf-8-sig" if mark else "utf-8", newline="")
        if any(not ref.strip() for _, ref in rows):
            with pytest.raises(DataError, match="ref"):
                read_csv(path)
            return
        found = {frozenset(pairs_of(e.facts)): list(e.references) for e in read_csv(path)}
        expected = {}
        for mr, ref in rows:
            expected.setdefault(frozenset(pairs_of(parse_mr(mr))), []).append(ref.strip())
        assert {key: set(refs) for key, refs in found.items()} == {
            key: set(refs) for key, refs in expected.items()
        }


@cases(60, share=0.03)
@given(st.integers(0), st.binary(max_size=12), st.booleans())
def test_a_csv_file_of_other_bytes(place, new, cut):
    data = (
        b'mr,ref\r\n"name[A], area[riverside]",A is at the river.\r\n"name[B]","B, ""the"" one"\r\n'
    )
    place %= len(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        path.write_bytes(data[:place] + new + (b"" if cut else data[place + len(new) :]))
        try:
            examples = read_csv(path)
        except DataError as error:
            assert str(path) in str(error)
            return
        assert all(example.facts and example.references for example in examples)
