"""Data-to-text tasks: pairs of a meaning representation and what to say.

`load_task` gives one of the lab's own domains, generated from a seed, or a CSV file in the format
of the E2E NLG challenge.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vblora_lab.data.domains import DOMAINS, RESTAURANTS, get_domain
from vblora_lab.data.grammar import Domain, describe, draw_facts
from vblora_lab.data.meaning import format_mr, parse_mr
from vblora_lab.errors import DataError

TRAIN_PAIRS = 4800
HELD_OUT = 300
REFERENCES = 3  # held-out meaning representations have several references, as in E2E


@dataclass(frozen=True)
class Example:
    """A meaning representation (`format_mr`'s text) and the texts that say it."""

    mr: str
    references: tuple[str, ...]

    @property
    def facts(self) -> dict[str, str]:
        return parse_mr(self.mr)


@dataclass(frozen=True)
class Task:
    """Three splits that share no meaning representation, and the domain that scores the texts."""

    name: str
    domain: Domain
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def pairs(self) -> int:
        """The number of (meaning representation, reference) pairs in all splits."""
        splits = (self.train, self.validation, self.test)
        return sum(len(example.references) for split in splits for example in split)


def load_task(name: str | Path = "restaurants", *, seed: int = 0) -> Task:
    """A task by domain name ("restaurants", "hotels", "museums", "films") or from a CSV file.

    "e2e" is the data set of the E2E challenge, from the hub or its cache.

    seed: draws the generated task, or how the CSV file's MRs are split. Raises `DataError` for an
    unknown name, for a file that is not in the E2E format, and where the hub is out of reach.
    """
    if str(name) in DOMAINS:
        return make_task(get_domain(str(name)), seed=seed)
    if str(name) == "e2e":
        from vblora_lab.data.e2e import load_e2e

        return load_e2e()
    path = Path(name)
    if path.suffix.lower() == ".csv" or path.exists():
        return split_examples(path.stem, RESTAURANTS, read_csv(path), seed=seed)
    raise DataError(
        f"no task is called {str(name)!r}, and there is no such CSV file; "
        f"choose one of {sorted(DOMAINS)}, 'e2e' (from the hub), or the path of a file with the "
        "columns mr and ref"
    )


def make_task(domain: Domain, *, seed: int = 0) -> Task:
    """Generate a task of `TRAIN_PAIRS` + 2 x `HELD_OUT` distinct MRs from a seed."""
    rng = random.Random(f"{domain.name}/{seed}")
    seen: set[frozenset[tuple[str, str]]] = set()

    def draw(count: int, references: int) -> tuple[Example, ...]:
        examples: list[Example] = []
        while len(examples) < count:
            facts = draw_facts(domain, rng)
            if frozenset(facts.items()) in seen:
                continue
            seen.add(frozenset(facts.items()))
            texts = tuple(describe(domain, facts, rng) for _ in range(references))
            examples.append(Example(format_mr(facts), texts))
        return tuple(examples)

    return Task(
        domain.name,
        domain,
        train=draw(TRAIN_PAIRS, 1),
        validation=draw(HELD_OUT, REFERENCES),
        test=draw(HELD_OUT, REFERENCES),
    )


def read_csv(path: str | Path) -> tuple[Example, ...]:
    """Read a CSV file in the format of E2E or cleaned E2E: the columns ``mr`` and ``ref``.

    Rows with the same MR, in whatever order its slots are written, become one example with several
    references; other columns are ignored. Raises `DataError` naming the file, the line (that on
    which a row begins, counted from 1) and the column.
    """
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # unlike the default, complains
    pairs: list[tuple[str, str]] = []
    line = 1
    try:
        columns = _check_columns(next(reader, []), text, path)
        line = reader.line_num + 1
        for row in reader:
            if row:  # not a blank line
                pairs.append(_pair(row, columns, f"{path}, line {line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, in the row that begins on line {line}: {error}. A quote that is opened must "
            'be closed, and a quote inside a quoted text is written twice ("").'
        ) from error
    if not pairs:
        raise DataError(f"{path}: no rows below the header")
    return group_examples(pairs)


def group_examples(pairs: Iterable[tuple[str, str]]) -> tuple[Example, ...]:
    """One example for all (MR, reference) pairs whose MRs have the same slots, in any order."""
    groups: dict[frozenset[tuple[str, str]], tuple[str, list[str]]] = {}
    for mr, reference in pairs:
        groups.setdefault(frozenset(parse_mr(mr).items()), (mr, []))[1].append(reference)
    return tuple(Example(mr, tuple(references)) for mr, references in groups.values())


def _read_text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    if not data.strip():
        raise DataError(f"{path}: the file is empty; the E2E format has the columns mr and ref")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not UTF-8; save the file as "
            "UTF-8"
        ) from error


def _check_columns(header: list[str], text: str, path: str | Path) -> list[str]:
    columns = [name.strip() for name in header]
    missing = sorted({"mr", "ref"} - set(columns))
    if missing:
        other = next((sign for sign in ";\t|" if sign in text.splitlines()[0]), None)
        hint = f". Is it separated by {other!r}? Columns are separated by commas" if other else ""
        raise DataError(
            f"{path}, line 1: no column {' and no column '.join(missing)}; "
            f"the file has {columns}, the E2E format has mr and ref{hint}"
        )
    return columns


def _pair(row: list[str], columns: list[str], place: str) -> tuple[str, str]:
    """MR and reference of a row; raises `DataError` for one that doesn't hold both."""
    if len(row) > len(columns):
        raise DataError(
            f"{place}, column {len(columns) + 1}: {row[len(columns)]!r} is one more than the "
            f"header's {len(columns)} columns; a text with commas must be in double quotes"
        )
    if len(row) < len(columns):
        raise DataError(
            f"{place}, column {columns[len(row)]}: missing, as the row ends after {len(row)} of "
            f"{len(columns)} columns"
        )
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    for name in ("mr", "ref"):
        if not cells[name]:
            raise DataError(f"{place}, column {name}: empty")
    try:
        parse_mr(cells["mr"])
    except DataError as error:
        raise DataError(f"{place}, column mr: {error}") from error
    return cells["mr"], cells["ref"]


def split_examples(
    name: str, domain: Domain, examples: Sequence[Example], *, seed: int = 0
) -> Task:
    """Split by meaning representation: a tenth (at least 1) to validation, as many to test."""
    if len(examples) < 3:
        raise DataError(
            f"{name}: {len(examples)} different meaning representations are too few to split "
            "into train, validation and test; give at least 3"
        )
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    held_out = min(max(1, len(shuffled) // 10), HELD_OUT)
    return Task(
        name,
        domain,
        train=tuple(shuffled[2 * held_out :]),
        validation=tuple(shuffled[:held_out]),
        test=tuple(shuffled[held_out : 2 * held_out]),
    )
