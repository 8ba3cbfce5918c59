"""Modules and functions stay short enough to read, and what is said once is said in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vblora_lab

PACKAGE = Path(vblora_lab.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
FRONT_END = {
    path.relative_to(PACKAGE).as_posix(): path
    for path in PACKAGE.rglob("*")
    if path.suffix in (".js", ".css")
}
LONGEST_MODULE, LONGEST_BODY = 350, 42  # lines
LONGER_MODULES = {
    "tuner/layer.py": "PEFT's layer classes, each with its docstrings",
    "tuner/model.py": "one class, whose methods and their signatures are PEFT's",
    "widgets/bank_heatmap/widget.py": "one widget, whose public methods are mostly docstrings",
}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring; of its signature the first line alone."""
    first = function.body[0]
    if ast.get_docstring(function) and len(function.body) > 1:
        first = function.body[1]
    return function.end_lineno - first.lineno + 2 if function.end_lineno else 0


def longer_bodies() -> set[str]:
    return {
        f"{name}:{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > LONGEST_BODY
    }


def test_functions_are_short():
    assert longer_bodies() == set()


def test_modules_are_short_but_for_those_named_here():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in (MODULES | FRONT_END).items()
    }
    longer = {name for name, lines in lengths.items() if lines > LONGEST_MODULE}
    assert longer == set(LONGER_MODULES)
    assert max(lengths.values()) <= 1.2 * LONGEST_MODULE


def test_the_method_is_read_in_one_sitting():
    story = ("admixture.py", "tuner/config.py", "tuner/layer.py", "tuner/model.py")
    lines = [len(MODULES[name].read_text(encoding="utf-8").splitlines()) for name in story]
    assert sum(lines) <= 1300


@pytest.mark.parametrize(
    ("text", "home"),
    [
        ("difflib", "errors.py"),  # the nearest valid choice
        ("os.fsync", "files.py"),  # files that are whole or absent
        ('"KiB"', "tables.py"),  # one scale of bytes
        ("<table", "tables.py"),  # HTML tables
    ],
)
def test_said_once(text, home):
    assert {n for n, path in MODULES.items() if text in path.read_text(encoding="utf-8")} == {home}
