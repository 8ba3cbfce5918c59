"""A cell may be run again when the whole chapter has been run: no later cell has taken its names.

What a cell needs of earlier ones, through the functions that it calls too, must not have been given
to something else further down: run again, the cell would fail, or worse, show other numbers.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
# Every answer has this name; `yours` knows whose it is. And a model is unloaded, and adapted again.
MEANT = {"02": {"answer"}, "05": {"base", "model"}, "11": {"answer"}}


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from scopes(child)


def names(node: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """Names that a statement reads as it is run, that its functions read, and that it gives."""
    module = symtable.symtable(ast.unparse(node), "cell", "exec")
    mine = module.get_symbols()
    given = {s.get_name() for s in mine if s.is_assigned() or s.is_imported()}
    read = {s.get_name() for s in mine if s.is_referenced()}
    inside = {
        s.get_name()
        for scope in scopes(module)
        for s in scope.get_symbols()
        if s.is_global() and s.is_referenced()
    }
    return read, inside, given


class Cell:
    """What a cell does with names.

    Attributes:
        reads: those that it reads as it is run.
        needs: those of them that it has not given itself before.
        gives: those that it leaves behind.
        calls: by function that it defines, what a call of it reads.
    """

    def __init__(self, source: str) -> None:
        lines = (line for line in source.splitlines() if not line.lstrip().startswith("%"))
        self.reads: set[str] = set()
        self.needs: set[str] = set()
        self.gives: set[str] = set()
        self.calls: dict[str, set[str]] = {}
        for node in ast.parse("\n".join(lines)).body:
            read, inside, given = names(node)
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.calls[node.name] = inside
            else:
                read |= inside
            # Of a loop or a block, what it gives itself is taken for its own.
            whole = isinstance(node, ast.For | ast.With | ast.While | ast.If)
            self.reads |= read
            self.needs |= read - self.gives - (given if whole else set())
            self.gives |= given


def taken(sources: dict[str, str]) -> set[tuple[str, str, str]]:
    """The cells that need what a later one gives anew: cell, name and that later cell."""
    cells = {name: Cell(source) for name, source in sources.items()}
    found, calls = set(), {}
    for at, (name, cell) in enumerate(cells.items()):
        calls |= cell.calls
        needs, left = set(cell.needs), cell.reads & calls.keys()
        while left:
            more = calls[left.pop()] - cell.gives - needs
            needs |= more
            left |= more & calls.keys()
        for need in needs:
            givers = [i for i, other in enumerate(cells.values()) if need in other.gives]
            if givers and givers[0] < at < givers[-1]:
                found.add((name, need, list(cells)[next(i for i in givers if i > at)]))
    return found


def test_it_finds_what_was_taken():
    one = {"a": "x = 1\ndef f():\n    return x", "b": "print(f())", "c": "y = x", "d": "x = 2"}
    assert taken(one) == {("b", "x", "d"), ("c", "x", "d")}
    assert (
        taken({"a": "x = 1", "b": "x = 3\nprint(x)", "c": "for x in 'ab':\n    print(x)"}) == set()
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_no_cell_takes_a_name_that_an_earlier_one_needs(path):
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    found = taken({cell.id: cell.source for cell in code})
    assert {it for it in found if it[1] not in MEANT.get(path.stem[:2], set())} == set()
