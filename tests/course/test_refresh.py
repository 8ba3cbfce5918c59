"""tools/notebooks.py: what is stored of a run."""

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from .notebook import KEPT, script, untidy

PRINTS = "print('a', flush=True); time.sleep(0.5); print('b'); 6 * 7"
TOOL = Path(__file__).resolve().parents[2] / "tools" / "notebooks.py"


@pytest.fixture(scope="module")
def tool():
    return script(TOOL)


def cell(source, *tags):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def test_outputs_of_tagged_cells_are_kept_and_no_others(tool, tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            cell("import time; time.time()"),
            cell(PRINTS, KEPT),
            cell("1", "other"),
        ]
    )
    tool.refresh(notebook, tmp_path)
    first, second, third = notebook.cells
    assert first.outputs == third.outputs == []
    assert [o.get("text") or o.data["text/plain"] for o in second.outputs] == ["a\nb\n", "42"]
    assert list(untidy(notebook)) == []
    nbformat.validate(notebook)
    once = nbformat.writes(notebook)
    tool.refresh(notebook, tmp_path)
    assert nbformat.writes(notebook) == once  # nothing differs from run to run


@pytest.mark.slow
def test_figures_are_stored_small_and_look_the_same(tool, tmp_path):
    source = """
from vblora_lab.course import figures
figures.stacked_bytes({"file": {"bank": 30, "logits": 12}}, "a title")
"""
    notebook = nbformat.v4.new_notebook(cells=[cell(source, KEPT)])
    large = nbformat.from_dict(notebook)
    NotebookClient(large, resources={"metadata": {"path": tmp_path}}).execute()
    tool.refresh(notebook, tmp_path)
    pngs = [base64.b64decode(n.cells[0].outputs[0].data["image/png"]) for n in (large, notebook)]
    assert len(pngs[1]) < 0.6 * len(pngs[0])
    before, after = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs)
    assert before.shape == after.shape
    assert np.abs(before.astype(int) - after).mean() < 1
    assert notebook.cells[0].outputs[0].metadata["image/png"]["alt"] == (
        "file: bank 30 bytes, logits 12 bytes"
    )


def test_a_notebook_that_fails_is_not_stored(tool, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[cell("1 / 0", KEPT)])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        tool.refresh(notebook, tmp_path)
