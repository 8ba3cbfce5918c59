"""Files that are no CSV, and paths that are no paths: one sentence that says what they are."""

import time

import pytest

from vblora_lab.data import load_task, parse_mr, read_csv
from vblora_lab.errors import DataError

JSON = '{"mr": "name[A]", "ref": "A."}\n'
NO_CSV = {
    "bom.csv": (b"\xef\xbb\xbf", "the file is empty"),
    "bom-and-blank.csv": (b"\xef\xbb\xbf \r\n", "the file is empty"),
    "rows.jsonl": (JSON.encode() * 2, r"this is JSON.*write it as CSV.*mr,ref"),
    "tight.jsonl": (b'{"mr":"name[A]","ref":"A."}\n', "this is JSON"),
    "rows.json": (f"\ufeff[\n  {JSON}]".encode(), "this is JSON"),
    "sheet.xlsx": (b"PK\x03\x04\x14\x00\x06\x00", r"zip archive.*\.xlsx.*save the sheet as 'CSV"),
    "sheet.csv": (b"PK\x03\x04\x14\x00\x06\x00", "zip archive"),
    "sheet.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", r"\(\.xls\).*save the sheet as 'CSV"),
    "utf-16.csv": ("mr,ref\nname[A],A.\n".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    "twice.csv": (b"mr,ref,mr\nname[A],x,name[B]\n", "line 1: 2 columns are called mr.*rename"),
    "thrice.csv": (b"ref,mr,ref, ref\n", "line 1: 3 columns are called ref.*rename"),
}


@pytest.mark.parametrize("name", NO_CSV)
@pytest.mark.parametrize("read", [read_csv, load_task])
def test_what_is_no_csv_is_named_for_what_it_is(tmp_path, name, read):
    content, message = NO_CSV[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("read", [read_csv, load_task])
@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + ".csv", "a/" * 5000 + "b.csv"])
def test_a_path_that_is_too_long_is_refused_and_shown_by_its_ends(read, path):
    with pytest.raises(DataError, match=rf"{path[:100]}.*….*{len(path)} characters.*too long"):
        read(path)


@pytest.mark.parametrize("read", [read_csv, load_task])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0b", r"a\\0b.*can't be a path: it has the character NUL"),
        ("a\0b.csv", r"a\\0b\.csv: can't be a path: it has the character NUL"),
        ("a\udabcb.csv", r"a\\udabcb\.csv: can't be"),
    ],
)
def test_what_can_be_no_path_is_refused_in_words_that_can_be_printed(read, path, message):
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    str(caught.value).encode("utf-8")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        load_task(tmp_path)


SPACES = " " * 100_000
LONG = {
    f"name[X],{SPACES}": None,
    f"name[X],{SPACES}area[riverside]": None,
    f"name{SPACES}[X]": None,
    f"name[{SPACES}X]{SPACES}": None,
    f"name[X],{SPACES}junk": "at character 100008: 'junk'",
    f"name[X]{SPACES}junk": "at character 0",
    f"name[X],{SPACES}[riverside]": "at character 100008",
    "a," * 50_000: "at character 0",
}


@pytest.mark.parametrize("mr", LONG, ids=range(len(LONG)))
def test_an_mr_takes_time_in_proportion_to_its_length(mr):
    start = time.perf_counter()
    if LONG[mr] is None:
        assert parse_mr(mr)["name"] == "X"
    else:
        with pytest.raises(DataError, match=LONG[mr]) as caught:
            parse_mr(mr)
        assert len(str(caught.value)) < 200
    assert time.perf_counter() - start < 1


def test_a_cell_of_an_mr_and_spaces_is_read(tmp_path):
    path = tmp_path / "spaces.csv"
    path.write_text(f'mr,ref\n"name[X],{SPACES}area[riverside]",X.\n', encoding="utf-8")
    (example,) = read_csv(path)
    assert example.facts == {"name": "X", "area": "riverside"}
