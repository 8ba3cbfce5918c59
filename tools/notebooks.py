"""Run notebooks and store what they show: `python tools/notebooks.py` for all, or name some.

What a notebook keeps is said by a tag. A cell that is tagged `nbval-check-output` is stored with
its output, and `make test` compares that with a fresh run: this is for counts, shapes, bytes and
equalities, which come out the same every time. Every other cell is stored without output: it
trains, measures time, or draws a widget, and says by asserts what must hold.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
KEPT = "nbval-check-output"
SECONDS = 600  # for one cell, on a busy machine
COLOURS = 256  # of a stored figure; fewer show as bands in a colour scale


def refresh(notebook: NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder and keep the outputs of its tagged cells. Raises what it raises.

    Nothing is kept that differs from run to run or from machine to machine: no times, no versions,
    and for a count of executions the place of the cell.
    """
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        record_timing=False,
        coalesce_streams=True,  # how printed text is cut into messages is a matter of chance
        resources={"metadata": {"path": folder}},
    )
    client.execute()
    clean(notebook)


def clean(notebook: NotebookNode) -> None:
    """Leave the outputs of tagged cells, and nothing else that running a notebook leaves behind."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for position, cell in enumerate(code, start=1):
        kept = KEPT in cell.metadata.get("tags", [])
        cell.execution_count = position if kept else None  # nbval asks for it beside outputs
        cell.outputs = cell.outputs if kept else []
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = position
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_few_colours(output.data["image/png"])


def with_few_colours(png: str) -> str:
    """The same picture in base64, with a palette: less than half the size, and it stays in git."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="files; all of them if not given")
    chosen = parser.parse_args().notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    os.environ["HF_HUB_OFFLINE"] = "1"  # the course needs no network; this proves it
    for path in chosen:
        notebook = nbformat.read(path, as_version=4)
        print(f"{path.name} ...", end=" ", flush=True)
        refresh(notebook, path.parent)
        nbformat.write(notebook, path)
        print("done")


if __name__ == "__main__":
    sys.exit(main())
