"""Notebooks that are run for the site: with static forms for widgets, and again only if need be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nbformat
import repository
import site_widgets
from nbclient import NotebookClient
from nbformat import NotebookNode

import notebooks

TOOLS = Path(__file__).parent


def run(path: Path, runs: Path, pages: Path) -> Path:
    """Run a notebook, unless that was done; returns the file with its outputs.

    Args:
        path: of the notebook.
        runs: folder for the file.
        pages: folder for pages of widgets.
    """
    file, key = runs / path.name, _key(path)
    if file.exists() and nbformat.read(file, as_version=4).metadata.get("key") == key:
        return file
    for old in pages.glob(f"{path.stem}-*.html"):
        old.unlink()
    notebook = nbformat.read(path, as_version=4)
    before = f"import sys; sys.path.append({str(TOOLS)!r}); import site_widgets\n"
    first = nbformat.v4.new_code_cell(before + "site_widgets.watch()")
    last = nbformat.v4.new_code_cell(f"site_widgets.show_forms({str(pages)!r}, {path.stem!r})")
    notebook.cells = [first, *notebook.cells, last]
    client = NotebookClient(
        notebook,
        timeout=notebooks.SECONDS,
        coalesce_streams=True,
        resources={"metadata": {"path": path.parent}},
    )
    client.execute()
    (shown,) = notebook.cells.pop().outputs
    del notebook.cells[0]
    put_forms(notebook, shown.data["application/json"])
    notebook.metadata["key"] = key
    nbformat.write(notebook, file)
    return file


def _key(path: Path) -> str:
    """Changes when the notebook does, or what it may import."""
    files = [path, *sorted((repository.ROOT / "vblora_lab").rglob("*")), TOOLS / "site_widgets.py"]
    kinds = (".ipynb", ".py", ".js", ".css")
    texts = b"".join(each.read_bytes() for each in files if each.suffix in kinds)
    return hashlib.sha256(texts).hexdigest()


def put_forms(notebook: NotebookNode, forms: dict[str, str]) -> None:
    """Put static forms where `site_widgets.watch` left marks."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/plain", "")
            if text.startswith(site_widgets.MARK):
                output.data = {"text/html": forms[text]}
