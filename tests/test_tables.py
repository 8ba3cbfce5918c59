"""Amounts and tables: the same everywhere, aligned, escaped."""

import pytest

from vblora_lab import tables


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (74_240, "72.5 KiB"),
     (2.5e6, "2.4 MiB"), (3e10, "27.9 GiB"), (2**42, "4.0 TiB")],
)  # fmt: skip
def test_bytes_in_the_largest_unit_of_which_there_is_one(size, text):
    assert tables.readable(size) == text


def test_counts_and_numbers():
    assert [tables.count(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
    assert tables.in_bytes(1536) == "1,536 bytes"
    assert tables.number(float("nan"), ".1f") == "–"
    assert tables.number(0.25, ".1%") == "25.0%"


def test_columns_are_as_wide_as_they_need_be():
    rows = [("name", "bytes"), ("a", "1"), ("long one", "1,000")]
    assert tables.aligned(rows) == ["name      bytes", "a             1", "long one  1,000"]
    assert tables.aligned(rows, text_columns=2, indent="  ")[1] == "  a         1"
    assert tables.as_text(rows[0], rows[1:], "Sizes").splitlines()[0] == "Sizes"


def test_html_is_escaped_unless_it_says_that_it_is_html():
    html = tables.as_html(("<a>", "b"), [("<i>", tables.Html("<b>1</b>"))], "x < y")
    assert "&lt;a&gt;" in html and "&lt;i&gt;" in html and "x &lt; y" in html
    assert "<b>1</b>" in html
    assert html.count("<tr") == 2 and html.count("<th") == 2 and html.count("<td") == 2
    assert html.count("text-align:right") == 2  # all but the first column
    assert html.startswith('<div style="overflow-x:auto"><table')  # it scrolls on a narrow page


def test_a_table_without_head_and_caption_has_neither():
    html = tables.as_html((), [("a", "b")], text_columns=2, wrap=True)
    assert "<caption" not in html and "<th" not in html
    assert "text-align:right" not in html and "white-space:normal" in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (12.4, "12 s"), (89, "89 s"), (180, "3 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_times_to_come_are_told_in_one_unit(seconds, text):
    assert tables.about(seconds) == text
