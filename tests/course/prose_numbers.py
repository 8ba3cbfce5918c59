"""Numbers in a notebook's prose, and whether the cells beside it print, assert or are told them.

A number is backed by a number in the code cells next to its text, in their code or in their stored
outputs, and in the text of an exercise by what the exercise is defined with. It may be rounded, and
in another unit: 13 billion is backed by 12,853,473,280, 20.6 MiB by 21,579,776, and 5% by 0.05.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from vblora_lab.course import exercises

from .notebook import CHECK

BESIDE = 3  # code cells before a text, and as many after it
UNITS = {
    "%": 0.01, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 1e3, "MB": 1e6, "GB": 1e9,
    "thousand": 1e3, "million": 1e6, "billion": 1e9,
}  # fmt: skip
NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\]\([^)]*\)|https?://\S+|<[^>]+>|^ {4}[^\n]*|^\s*\d+\. "
    r"|\[\d\d-[\w-]+\b|\barXiv [\d.]+|^#[^\n]*|\*\*\d [A-Z]\w+\*\*"
    r"|\*\*It takes\*\*.*?\n\n",
    re.DOTALL | re.MULTILINE,
)
WITHOUT_DOLLARS = re.compile(r"\\(?:text|operatorname)\{([^}]*)\}")
# Not the digits of names: mini-OPT, OPT-125m, SmolLM2, GPT-2, T5, v3, float32, H200.
NUMBER = re.compile(
    r"(?<![\w.,/^_{-])-?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w/]|[.,]\d|-(?:bit|pass))"
    r"(?:\s?(%|[KMG]iB\b|[kMG]B\b|thousand\b|million\b|billion\b))?"
)


def numbers_in(text: str) -> Iterator[tuple[str, float, float]]:
    """The numbers of a text: as written, their value, and half of what the last digit is worth."""
    for found in NUMBER.finditer(text):
        whole, part, unit = found.groups()
        digits = whole.replace(",", "")
        scale = UNITS.get(unit, 1.0)
        decimals = len(part) - 1 if part else 0
        # 300 may be rounded to hundreds where a word or a unit follows, and 2,048 is what it says.
        zeros = len(digits) - len(digits.rstrip("0")) if unit and not part else 0
        worth = 10.0 ** (zeros - decimals) / 2
        yield found.group().strip(), float(digits + (part or "")) * scale, worth * scale


def prose(source: str) -> str:
    """The text of a Markdown cell without what is no statement: code, headings, links, names of
    buttons, formulas on lines of their own, and what the chapter takes, which varies."""
    return WITHOUT_DOLLARS.sub(r"\1", NOT_PROSE.sub(" ", source + "\n\n")).replace("$", " ")


def backing(cell: NotebookNode) -> set[float]:
    """The numbers that a code cell has, in its code and its stored outputs."""
    code = TransformerManager().transform_cell(cell.source)
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    texts = [token.string for token in tokens if token.type != tokenize.COMMENT]
    texts += [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return {value for text in texts for _, value, _ in numbers_in(text)}


def _of_exercise(name: str) -> set[float]:
    """The numbers that an exercise is defined with: its text may say them."""
    exercise = exercises()[name]
    module = import_module(f"vblora_lab.course.chapter_{name[:2]}")
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    parts: list[ast.AST] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and getattr(node.args[0], "value", "") == name
    ]
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    words = f"{exercise.hint} {exercise.because} {exercise.solution}"
    found = {number for _, number, _ in numbers_in(words)}
    for node in (inner for part in parts for inner in ast.walk(part)):
        if isinstance(node, ast.Name) and node.id in functions:
            parts.append(functions.pop(node.id))  # a checker; its numbers come later in this loop
        value = getattr(module, node.id, None) if isinstance(node, ast.Name) else None
        value = node.value if isinstance(node, ast.Constant) else value
        if isinstance(value, int | float):
            found.add(float(value))
        elif isinstance(value, str):
            found |= {number for _, number, _ in numbers_in(value)}
    return found


def unbacked(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """The numbers in prose that no cell beside has: the id of the text, and the number as written.

    The last text is left out: it says what to try.
    """
    *cells, _ = notebook.cells  # the last one says what to try
    known = {i: backing(cell) for i, cell in enumerate(cells) if cell.cell_type == "code"}
    for at, cell in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        before = [i for i in known if i < at][-BESIDE:]
        after = [i for i in known if i > at][:BESIDE]
        beside = set().union(*(known[i] for i in before + after))
        if after:
            names = CHECK.findall(cells[after[0]].source)
            beside = beside.union(*(_of_exercise(name) for name in names))
        for written, value, worth in numbers_in(prose(cell.source)):
            if not any(abs(number - value) <= worth * (1 + 1e-9) for number in beside):
                yield cell.id, written
