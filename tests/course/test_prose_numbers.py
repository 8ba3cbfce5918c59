"""Every number in the notebooks' prose is printed, asserted or used by the cells beside it."""

import nbformat
import pytest

from .notebook import PATHS, read
from .prose_numbers import numbers_in, unbacked

BENCHMARK = "how a benchmark was run whose results the next cells read"
# Numbers of the literature, definitions, and settings of what isn't run here. An entry that isn't
# needed any more fails the test too.
ALLOWED = {
    ("01", "idea", "1"): "a definition: shares sum to 1",
    ("02", "title", "30"): "counted below",
    ("06", "sharing-notes", "2"): "a definition: the largest entropy of two shares is ln 2",
    ("06", "control-long-text", "60"): BENCHMARK,
    ("06", "control-long-text", "500"): BENCHMARK,
    ("06", "control-long-text", "16"): BENCHMARK,
    ("06", "control-long-text", "8"): BENCHMARK,
    ("08", "long-text", "16"): BENCHMARK,
    ("08", "long-text", "200"): BENCHMARK,
    ("08", "differences-notes", "90.0 KiB"): "printed in bytes, in the table further up",
    ("08", "differences-notes", "20.6 MiB"): "printed in bytes, in the table further up",
    ("08", "curve-text", "25"): "the size of SmolLM2-135M, which isn't loaded here",
    ("08", "curve-text", "500"): BENCHMARK,
    ("08", "small-too", "60"): BENCHMARK,
    ("08", "curve-notes", "300"): "kB, read off the figure",
    ("08", "paper-text", "60"): "the paper's smallest model",
    ("08", "paper-text", "2,400"): "the paper's largest model",
    ("08", "paper-notes", "1.9"): "the paper's deviations",
    ("08", "growth-notes", "2.0 MiB"): "the paper's bank",
    ("12", "c02", "22.7 million"): "the size of an encoder that is fetched only if asked for",
    ("12", "c02", "80 MiB"): "of the wheel that is fetched",
    ("12", "c06", "500"): "the sum of the exercise's other numbers",
    ("13", "c02", "89 MiB"): "of the wheel that is fetched",
    ("09", "results-steps-text", "1"): "a definition: relative to the frozen base",
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_numbers_in_prose_are_those_of_the_cells_beside_it(path):
    chapter = path.name[:2]
    found = {(chapter, cell, written) for cell, written in unbacked(read(path))}
    allowed = {entry for entry in ALLOWED if entry[0] == chapter}
    assert sorted(found - allowed) == [], "print or assert them, or leave them out"
    assert sorted(allowed - found) == [], "these need no exception"


def test_vb_lora_takes_as_many_lines_as_chapter_02_says():
    import vblora_lab as lab

    cells = {cell.id: cell.source for cell in read(PATHS[2]).cells}
    parts = (cells["admixture"], lab.solution("02-layer").text, cells["build-model"])
    lines = [line for part in parts for line in part.splitlines() if line.strip()]
    assert 28 <= len(lines) <= 33


# --- the test can fail


def notebook(text, code="", output=""):
    shown = [nbformat.v4.new_output("stream", text=output)] if output else []
    cells = [
        nbformat.v4.new_markdown_cell(text, id="text"),
        nbformat.v4.new_code_cell(code, outputs=shown),
        nbformat.v4.new_markdown_cell("Try 77."),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    "text, code, output",
    [
        ("It has 12 layers.", "", "12 layers"),
        ("It has 12 layers.", "assert layers == 12", ""),
        ("13 billion numbers", "", "12,853,473,280 numbers"),
        ("about 200 kB", "", "203,520 bytes"),
        ("within 5% of it", "assert error < 0.05", ""),
        ("The loss is 0.42.", "", "0.419"),
        ("Set `r=3` in mini-OPT of [04-every-field](04-every-field.ipynb).", "", ""),
        ("**It takes** 25 seconds.", "", ""),
        ("What of an index up to 127?", 'lab.check("00-bank", answer)', ""),
    ],
)
def test_a_backed_number_passes(text, code, output):
    assert list(unbacked(notebook(text, code, output))) == []


@pytest.mark.parametrize(
    "text, code, output, written",
    [
        ("It has 12 layers.", "", "13 layers", "12"),
        ("It has 12 layers.", "# 12 of them", "", "12"),
        ("13 billion numbers", "", "13,853,473,280 numbers", "13 billion"),
        ("The loss is 0.42.", "", "0.431", "0.42"),
        ("within 5% of it", "assert error < 0.06", "", "5%"),
    ],
)
def test_a_number_that_nothing_backs_is_found(text, code, output, written):
    assert list(unbacked(notebook(text, code, output))) == [("text", written)]


def test_numbers_are_read_as_people_write_them():
    found = [(written, value) for written, value, _ in numbers_in("2,048 x 0.5, 20 %, OPT-125m")]
    assert found == [("2,048", 2048.0), ("0.5", 0.5), ("20 %", 0.2)]
