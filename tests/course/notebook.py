"""Notebooks as tests see them: cells, exercises, definitions, what makes them untidy; scripts."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
KEPT = "nbval-check-output"

CHECK = re.compile(r'^lab\.check\("([\w-]+)", answer\)$', re.MULTILINE)
# Folders that every machine has, at the start of a word; "/" alone would find "in / b" and URLs.
ABSOLUTE = re.compile(
    r"(?<![\w.:/])(?:/(?:home|root|tmp|var|usr|opt|mnt|work|srv|Users|private|content|workspace)/"
    r"|[A-Za-z]:\\)"
)


def script(path: Path) -> ModuleType:
    """A Python file that is not part of a package, as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def exercise_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """The cells with an exercise, by its name."""
    found = {}
    for cell in code_cells(notebook):
        for name in CHECK.findall(cell.source):
            found[name] = cell
    return found


def definitions(name: str) -> dict:
    """What a notebook imports and defines, without running the rest of it."""
    (path,) = FOLDER.glob(f"{name}*.ipynb")
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    to_python = TransformerManager().transform_cell  # of magics, as %pip
    tree = ast.parse("\n\n".join(to_python(cell.source) for cell in code_cells(read(path))))
    tree.body = [node for node in tree.body if isinstance(node, kept)]
    namespace: dict = {"__name__": path.stem}
    exec(compile(tree, path.name, "exec"), namespace)
    return namespace


def untidy(notebook: NotebookNode) -> Iterator[str]:
    """Sentences about what a notebook shouldn't have been saved with."""
    for cell in notebook.cells:
        if ABSOLUTE.search(cell.source):
            yield f"{cell.id}: an absolute path in its text"
    for position, cell in enumerate(code_cells(notebook), start=1):
        tagged = KEPT in cell.metadata.get("tags", [])
        if cell.execution_count != (position if tagged else None):
            yield f"{cell.id}: execution count {cell.execution_count}; run tools/notebooks.py"
        if cell.outputs and not tagged:
            yield f"{cell.id}: outputs, but no tag {KEPT}"
        if tagged and not cell.outputs:
            yield f"{cell.id}: tagged {KEPT}, but nothing is stored to compare with"
        for output in cell.outputs:
            yield from (f"{cell.id}: {problem}" for problem in _untidy_output(output))


def _untidy_output(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "error":
        yield f"an error ({output.ename})"
        return
    if output.output_type == "stream":
        texts = {"text/plain": output.text}
        if output.name == "stderr":
            yield "text on stderr"
    else:
        texts = {kind: text for kind, text in output.data.items() if isinstance(text, str)}
    for kind, text in texts.items():
        if kind == "image/png":
            if not output.metadata.get(kind, {}).get("alt"):
                yield "a figure without a text alternative"
            continue
        if re.search(r"\b\w*Warning\b|\bWARNING\b", text):
            yield "a warning"
        if ABSOLUTE.search(text):
            yield "an absolute path"
        if re.search(r"\bat 0x[0-9a-f]{6,}", text):
            yield "an address in memory, which differs from run to run"
