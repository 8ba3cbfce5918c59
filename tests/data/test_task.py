"""Tasks: splits without overlap, and CSV files as E2E has them."""

import pytest

from vblora_lab.data import DOMAINS, load_task, read_csv
from vblora_lab.errors import DataError


@pytest.mark.parametrize("name", DOMAINS)
def test_a_generated_task_is_large_and_its_splits_share_no_mr(name):
    task = load_task(name)
    assert task.pairs >= 5000
    splits = [
        {frozenset(example.facts.items()) for example in split}
        for split in (task.train, task.validation, task.test)
    ]
    assert [len(s) for s in splits] == [len(task.train), len(task.validation), len(task.test)]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


def test_a_task_depends_on_its_seed_alone():
    assert load_task("hotels", seed=1) == load_task("hotels", seed=1)
    assert load_task("hotels", seed=1).train != load_task("hotels", seed=2).train


E2E = """\ufeffmr,ref,orig_mr
"name[The Eagle], eatType[coffee shop]","The Eagle, a ""coffee shop"", is here.",x
"eatType[coffee shop], name[The Eagle]",A coffee shop: The Eagle.,y
"name[Café Señor], food[Thai]","Café Señor serves Thai food.
It is fine.",z
name[Otto],Otto is a place.,
"""


def test_reads_e2e_files_with_quotes_unicode_line_breaks_and_extra_columns(tmp_path):
    path = tmp_path / "devset.csv"
    path.write_text(E2E, encoding="utf-8")
    eagle, cafe, otto = read_csv(path)
    # the same slots in another order are the same meaning
    assert eagle.references == ('The Eagle, a "coffee shop", is here.', "A coffee shop: The Eagle.")
    assert cafe.facts == {"name": "Café Señor", "food": "Thai"}
    assert cafe.references == ("Café Señor serves Thai food.\nIt is fine.",)
    assert otto.references == ("Otto is a place.",)


def test_a_csv_file_becomes_a_task_split_by_meaning(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"name[Place {i % 20}],Place {i % 20} said {i}." for i in range(60)]
    path.write_text("mr,ref\n" + "\n".join(rows), encoding="utf-8")
    task = load_task(path)
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 2, 2)
    assert task.pairs == 60 and task.name == "own"
    assert len({example.mr for example in task.train + task.validation + task.test}) == 20


MALFORMED = {
    "meaning,text\na,b\n": r"line 1: no column mr and no column ref; the file has \['meaning'",
    "mr;ref\nname[A];x\n": "line 1: no column mr and no column ref.*separated by ';'",
    "mr,ref\n": "no rows below the header",
    "mr,ref\n\n\n": "no rows below the header",
    "": "the file is empty",
    " \n\n": "the file is empty",
    "mr,ref\nname[A],\n": "line 2, column ref: empty",
    "mr,ref\nname[A],x\n,y\n": "line 3, column mr: empty",
    "mr,ref\nname[A],x\njunk,y\n": "line 3, column mr: not a meaning representation",
    'mr,ref\nname[A],"two\nlines"\njunk,y\n': "line 4, column mr: not a meaning",
    'mr,ref\nname[A],x\njunk,"y\nz"\n': "line 3, column mr: not a meaning",
    "mr,ref\nname[A],x, and y\n": "line 2, column 3: ' and y' is one more",
    "mr,ref,id\nname[A],x,1\nname[B]\n": "line 3, column ref: missing",
    'mr,ref\nname[A],x\nname[B],"open\nname[C],y\n': "row that begins on line 3: .*closed",
    'mr,ref\nname[A],"x"y\n': "row that begins on line 2",
    "mr,ref\nname[A],x\n": "too few to split",
}


@pytest.mark.parametrize("content", MALFORMED)
def test_other_files_are_refused_by_name_line_and_column(tmp_path, content):
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=MALFORMED[content]) as caught:
        load_task(path)
    assert str(path) in str(caught.value) or "bad: 1 different" in str(caught.value)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("mr,ref\nname[A],x\nname[Café],Café.\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv, line 3: byte 0xe9 is not UTF-8"):
        read_csv(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: can't be read"):
        load_task(tmp_path / "none.csv")


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"'restaurant'.*films.*restaurants"):
        load_task("restaurant")
