"""Instructions: files of JSON lines, what is refused in them, and the task that they become."""

import json
import math
import re

import pytest

from vblora_lab.data import Example, load_task, read_instructions, slot_error_rate, slot_errors
from vblora_lab.errors import DataError


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_lines_are_read_and_those_that_ask_the_same_are_one(tmp_path):
    rows = [
        {"prompt": " Say it\u2028politely. ", "completion": "Please.\n"},
        {"prompt": "Note this.", "completion": "- [ ] this", "source": "me"},
        {"completion": "If you would.", "prompt": "Say it\u2028politely."},
    ]
    path = write(tmp_path / "own.jsonl", rows)
    path.write_text("\ufeff" + path.read_text() + "\n  \n", encoding="utf-8")
    polite, note = read_instructions(path)
    assert polite.mr == "Say it\u2028politely."
    assert polite.references == ("Please.", "If you would.")
    assert note.references == ("- [ ] this",)


def test_an_instruction_has_no_slots_to_get_wrong(tmp_path):
    rows = [{"prompt": f"Ask {i}.", "completion": str(i)} for i in range(20)]
    task = load_task(write(tmp_path / "asked.jsonl", rows))
    assert task.name == "asked"
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 2, 2)
    example = task.train[0]
    assert example.facts == {} and slot_errors(task.domain, {}, "Thai food, cheap") == ()
    assert math.isnan(slot_error_rate(task.domain, [{}, {}], ["a", "b"]))
    assert example != Example(example.mr, example.references)  # which would be asked with an arrow


LINE = re.compile(
    r"task \| who: \S.* \| what: \S.* \| when: \S.*|meeting \| what: \S.* \| where: \S.* \| when: "
    r"\S.*|expense \| who: \S.* \| what: \S.* \| amount: \d+ EUR"
)


def test_the_office_s_messages_are_all_filed_in_its_form_and_none_is_in_two_splits():
    task = load_task("office")
    splits = (task.train, task.validation, task.test)
    assert [len(split) for split in splits] == [120, 15, 30]
    examples = [example for split in splits for example in split]
    assert len({example.mr for example in examples}) == 165
    for example in examples:
        (line,) = example.references
        assert LINE.fullmatch(line), line
        amount = re.search(r"\d+ EUR$", line)
        assert amount is None or amount[0] in example.mr


BAD = {
    "prompt: a\n": r"line 1: not JSON \(.*write \{\"prompt\"",
    '{"prompt": "a", "completion": "b"}\n{"prompt": "a",\n': "line 2: not JSON",
    "[" * 5000 + "\n": "line 1: not JSON",
    '["a", "b"]\n': "line 1: a list; each line is an object with prompt and completion",
    '{"instruction": "a", "output": "b"}\n': r"no key prompt and no key completion; the line has "
    r"\['instruction', 'output'\]",
    '{"mr": "name[A]", "ref": "A."}\n': "this is JSON, and not CSV; write it as CSV",
    '{"prompt": "a"}\n': "line 1: no key completion; the line has",
    '{"prompt": "a", "completion": " "}\n': "line 1, key completion: empty",
    '{"prompt": "a", "completion": 3}\n': "line 1, key completion: a int, and not a text",
    '{"prompt": [{"role": "user"}], "completion": "b"}\n': "key prompt: a list, and not a text; of "
    "a chat, write the last question",
    "\n \n": "the file is empty; instructions have the keys prompt and completion",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_file_with_a_mistake_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=BAD[text]) as caught:
        load_task(path)
    assert str(caught.value).startswith(str(path))


def test_too_few_are_refused_and_a_file_that_is_not_there(tmp_path):
    rows = [{"prompt": "a", "completion": str(i)} for i in range(9)]
    with pytest.raises(DataError, match="1 different meaning representations or prompts"):
        load_task(write(tmp_path / "few.jsonl", rows))
    with pytest.raises(DataError, match="can't be read"):
        load_task(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"or of a \.jsonl file with the keys prompt"):
        load_task("none")
