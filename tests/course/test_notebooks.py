"""The notebooks as files: tidy, complete, and green with their exercises solved.

In `make test`, nbval runs each of them once, compares stored outputs, and lets no cell fail: some
with their exercises solved, which is done here, and the others as they are, with open exercises.
"""

import os
import re
import subprocess
import sys

import nbformat
import pytest

import vblora_lab as lab
from vblora_lab.course import exercises

from .notebook import FOLDER, KEPT, PATHS, code_cells, exercise_cells, read, untidy

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
(_solved,) = re.findall(r"^SOLVED := (.*)$", (FOLDER.parent / "Makefile").read_text(), re.MULTILINE)
SOLVED = set(_solved.split())  # numbers of those that `make test` runs here


@every_notebook
def test_it_was_saved_tidily(path):
    assert list(untidy(read(path))) == []


@every_notebook
def test_it_begins_and_ends_as_all_do(path):
    notebook = read(path)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "## What to try" in last.source
    assert re.search(r"\]\(\d\d-[\w-]+\.ipynb\)", last.source), "says where to go on"
    assert "this took" in code_cells(notebook)[-1].source, "says how long it took, and on what"


@every_notebook
def test_it_says_what_one_can_do_afterwards_and_what_it_takes(path):
    text = read(path).cells[0].source
    assert re.search(r"\b(seconds|minutes?)\b", text)
    for part in ("**Afterwards you can**", "**You need**", "**It takes**", "memory", "glossary.md"):
        assert part in text


@every_notebook
def test_its_links_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(((?!https?:)[^)#]+)", cell.source):
                assert (FOLDER / target).exists(), target


@every_notebook
def test_its_code_fits_into_a_page(path):
    for cell in code_cells(read(path)):
        assert max(map(len, cell.source.splitlines())) <= 100, cell.source


# At 1024 pixels, beside the file browser, JupyterLab breaks longer ones, and tables fall apart.
WIDEST_LINE = 73


@every_notebook
def test_what_it_prints_fits_into_a_narrow_window(path):
    printed = {
        cell.id: output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in code_cells(read(path))
        for output in cell.outputs
        if not {"text/html", "image/png"} & output.get("data", {}).keys()
    }
    wider = {
        name for name, text in printed.items() if max(map(len, text.split("\n"))) > WIDEST_LINE
    }
    assert wider == set()


@every_notebook
def test_its_exercises_are_at_least_three_and_open(path):
    cells = exercise_cells(read(path))
    number = path.name[:2]
    assert len(cells) >= 3
    assert list(cells) == [name for name in exercises() if name.startswith(number)]
    for name, cell in cells.items():
        assert "..." in cell.source, f"{name} is saved with an answer"
        assert lab.solution(name).text not in cell.source
        assert KEPT not in cell.metadata.get("tags", []), "its output depends on the answer"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=[] if p.name[:2] in SOLVED else pytest.mark.long, id=p.stem)
        for p in PATHS
    ],
)
def test_nbval_is_green_with_every_exercise_solved(path, tmp_path):
    """Stored outputs are compared here too, so a solution must not change what comes after it."""
    notebook = read(path)
    for name, cell in exercise_cells(notebook).items():
        check = f'lab.check("{name}", answer)'
        cell.source = f"{lab.solution(name)}\n\n{check}"
        proof = nbformat.v4.new_code_cell(f"assert {check}.right")
        notebook.cells.insert(notebook.cells.index(cell) + 1, proof)
    nbformat.write(notebook, tmp_path / path.name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=600", "-q",
         "-p", "no:cacheprovider", path.name],
        cwd=tmp_path, capture_output=True, text=True, timeout=580,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{len(code_cells(notebook))} passed" in done.stdout


def test_the_start_leads_to_all_notebooks():
    assert [path.name[:2] for path in PATHS] == [f"{number:02}" for number in range(len(PATHS))]
    table = read(PATHS[0]).cells[-1].source
    assert [path.name for path in PATHS[1:] if f"]({path.name})" not in table] == []


# --- the test of tidiness can fail


def notebook_with(source="1 + 1", outputs=(), tags=(KEPT,), count=1):
    cell = nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count)
    cell.metadata["tags"] = list(tags)
    return nbformat.v4.new_notebook(cells=[cell])


def shown(**data):
    kinds = {"text": "text/plain", "html": "text/html", "png": "image/png"}
    data = {kinds[kind]: value for kind, value in data.items()}
    return nbformat.v4.new_output("display_data", data=data)


TWO = shown(text="2")
ERROR = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
STDERR = nbformat.v4.new_output("stream", name="stderr", text="x")


@pytest.mark.parametrize(
    "notebook, problem",
    [
        (notebook_with(outputs=[ERROR]), "an error"),
        (notebook_with(outputs=[STDERR]), "stderr"),
        (notebook_with(outputs=[shown(text="x.py:3: UserWarning: topk=1")]), "a warning"),
        (notebook_with(outputs=[shown(html="in /home/me/lab")]), "an absolute path"),
        (notebook_with(outputs=[shown(text=r"C:\Users\me")]), "an absolute path"),
        (notebook_with(outputs=[TWO], source="open('/tmp/x')"), "an absolute path in its text"),
        (notebook_with(outputs=[shown(text="<object at 0x7f00deadbeef>")]), "an address"),
        (notebook_with(outputs=[shown(text="figure", png="aGk=")]), "a text alternative"),
        (notebook_with(outputs=[TWO], tags=(), count=None), "no tag"),
        (notebook_with(outputs=[]), "nothing is stored"),
        (notebook_with(outputs=[TWO], count=3), "execution count"),
    ],
)  # fmt: skip
def test_an_untidy_notebook_is_found(notebook, problem):
    (found,) = untidy(notebook)
    assert problem in found


def test_a_tidy_notebook_passes():
    assert list(untidy(notebook_with(outputs=[TWO]))) == []
    paths = "see https://arxiv.org/abs/2405.15179, in / b, LoRA/VB-LoRA and ../docs/images"
    assert list(untidy(notebook_with(outputs=[shown(text=paths)]))) == []
