"""Tasks in CSV files, in the format of E2E: the columns ``mr`` and ``ref``."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vblora_lab.data.meaning import parse_mr
from vblora_lab.data.task import Example, group_examples
from vblora_lab.data.text_file import read_text, shown
from vblora_lab.errors import DataError


def read_csv(path: str | Path) -> tuple[Example, ...]:
    """Read a CSV file in the format of E2E or cleaned E2E: the columns ``mr`` and ``ref``.

    Rows with the same MR, in whatever order its slots and their values are written, become one
    example with several references; other columns are ignored. Raises `DataError` naming the file,
    the line (that on which a row begins, counted from 1) and the column.
    """
    text = read_text(path)
    file = shown(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # unlike the default, complains
    pairs: list[tuple[str, str]] = []
    line = 1
    try:
        columns = _check_columns(next(reader, []), text, file)
        line = reader.line_num + 1
        for row in reader:
            if row:  # not a blank line
                pairs.append(_pair(row, columns, f"{file}, line {line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file}, in the row that begins on line {line}: {error}. A quote that is opened must "
            'be closed, and a quote inside a quoted text is written twice ("").'
        ) from error
    if not pairs:
        raise DataError(f"{file}: no rows below the header")
    return group_examples(pairs)


def _check_columns(header: list[str], text: str, file: str) -> list[str]:
    """The names of the columns; raises `DataError` unless mr and ref are there once each."""
    columns = [name.strip() for name in header]
    missing = sorted({"mr", "ref"} - set(columns))
    if missing:
        other = next((sign for sign in ";\t|" if sign in text.splitlines()[0]), None)
        hint = f". Is it separated by {other!r}? Columns are separated by commas" if other else ""
        raise DataError(
            f"{file}, line 1: no column {' and no column '.join(missing)}; "
            f"the file has {columns}, the E2E format has mr and ref{hint}"
        )
    for name in ("mr", "ref"):
        if columns.count(name) > 1:
            raise DataError(
                f"{file}, line 1: {columns.count(name)} columns are called {name}, in {columns}; "
                "rename or remove all but the one to read"
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
