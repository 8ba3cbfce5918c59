"""Tasks of instructions, from files of JSON lines: what a person asks, and the answer wanted.

The keys are ``prompt`` and ``completion``, as TRL's trainers read them, so that a file serves both.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vblora_lab.data.grammar import Domain
from vblora_lab.data.task import Example, Task
from vblora_lab.data.text_file import read_text, shown
from vblora_lab.errors import DataError

OFFICE = Path(__file__).resolve().parents[1] / "assets" / "office"
KEYS = ("prompt", "completion")
NOT_CSV = ". For a task in the E2E format, this is JSON, and not CSV; write it as CSV: first mr,ref"


@dataclass(frozen=True)
class Instruction(Example):
    """What a person asks, in ``mr``, and the answers to it. It has no slots, so no facts either.

    A model whose tokenizer has a chat template is asked in a turn of a chat.
    """

    @property
    def facts(self) -> dict[str, str | tuple[str, ...]]:
        return {}


def _no_name(_: random.Random) -> str:
    raise DataError("instructions have no slots, so no names can be drawn for them")


NO_SLOTS = Domain("instructions", kind="", nouns=(), slots=(), make_name=_no_name)
"""The domain of instructions: there are no slots that a text could get wrong."""


def read_instructions(path: str | Path) -> tuple[Instruction, ...]:
    """Read a file of JSON lines, one ``{"prompt": ..., "completion": ...}`` on each.

    Lines with the same prompt become one instruction with several answers; other keys are ignored.
    Raises `DataError` naming the file, the line (counted from 1) and the key.
    """
    file = shown(path)
    answers: dict[str, list[str]] = {}
    # Not splitlines(), which would also cut at separators that JSON allows within a text.
    for number, line in enumerate(read_text(path, csv=False).split("\n"), start=1):
        if line.strip():
            prompt, completion = _read_line(line, f"{file}, line {number}")
            answers.setdefault(prompt, []).append(completion)
    return tuple(Instruction(prompt, tuple(texts)) for prompt, texts in answers.items())


def office() -> Task:
    """The shipped task: messages, each with the one line that an office files it as.

    120 to train on, 15 to validate and 30 to test; "expense | who: Tom | what: lamp | amount: 9
    EUR" is such a line, and a task or a meeting has other fields.
    """
    splits = {
        split: read_instructions(OFFICE / f"{split}.jsonl")
        for split in ("train", "validation", "test")
    }
    return Task("office", NO_SLOTS, **splits)


def _read_line(line: str, place: str) -> tuple[str, str]:
    """Prompt and completion of a line; raises `DataError` for one that doesn't hold both."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{place}: not JSON ({error}); write {{"prompt": "...", "completion": "..."}} on each '
            "line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a {type(row).__name__}; each line is an object with {_keys()}")
    missing = [key for key in KEYS if key not in row]
    if missing:
        hint = NOT_CSV if {"mr", "ref"} & row.keys() else ""
        raise DataError(
            f"{place}: no key {' and no key '.join(missing)}; the line has {sorted(row)}, a file "
            f"of instructions has {_keys()}{hint}"
        )
    prompt, completion = (_text(row[key], f"{place}, key {key}") for key in KEYS)
    return prompt, completion


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        kind = type(value).__name__
        hint = "; of a chat, write the last question and its answer" if kind == "list" else ""
        raise DataError(f"{place}: a {kind}, and not a text{hint}")
    if not value.strip():
        raise DataError(f"{place}: empty")
    return value.strip()


def _keys() -> str:
    return " and ".join(KEYS)
