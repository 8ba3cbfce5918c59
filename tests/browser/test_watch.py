"""`tools/watch.py`: what its newcomer finds wrong, and that its acts are in the notebooks."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "watched")]
import watch  # noqa: E402
from chapters import AFTERWARDS, MEANWHILE, ONLY_ONCE  # noqa: E402
from lab import Newcomer  # noqa: E402

SHOW = "from IPython.display import HTML, Javascript, display\nimport ipywidgets\n"
CUT = "width: 30px; overflow: hidden; white-space: nowrap"
BROKEN = {
    "1 / 0": "error: ZeroDivisionError",
    "print('a word ' * 60)": "wrapped: breaks lines of up to 420 letters",
    "HTML('<div style=\"width: 3000px\">wide</div>')": "wide: is",
    'HTML(\'<p class="vblora-x" style="color: #ccc">faint</p>\')': "faint: has a contrast of 1.6",
    f'HTML(\'<div class="vblora-x" style="{CUT}">a long text</div>\')': "cut: cuts div",
    "Javascript('console.error(\"broken\")')": "console: broken",
}
BUTTONS = """
out, count = ipywidgets.Label("0"), ipywidgets.Button(description="count")
count.on_click(lambda _: setattr(out, "value", out.value + "1"))
ipywidgets.VBox([count, ipywidgets.Button(description="nothing"), out])
"""


def test_what_is_wrong_is_found_and_what_is_right_is_not(browser, lab, tmp_path, monkeypatch):
    monkeypatch.setattr("lab.SOON", 3000)
    lab.write("00-broken", SHOW, *BROKEN, "print('fine')", BUTTONS)
    newcomer = Newcomer(browser, lab, "00-broken")
    for cell in newcomer.ids():
        newcomer.run(cell)
    *_, fine, buttons = newcomer.ids()
    newcomer.press_all(buttons)
    newcomer.pictures(tmp_path, watch.LOOK_FOR)
    found = list(newcomer.faults)
    for cell, fault in zip(newcomer.ids()[1:], BROKEN.values(), strict=False):
        which = fault if fault.startswith("console") else f"{cell}: {fault}"
        assert any(text.startswith(which) for text in found), (which, found)
    assert not any(text.startswith(fine) for text in found)
    assert [text for text in found if "button" in text] == [
        f"{buttons}: button: button 'nothing' changes nothing"
    ]
    shapes = {path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()}
    assert shapes == {f"00-{w}-{theme}" for w in ("1400", "1024") for theme in ("light", "dark")}

    newcomer.reload()  # the page alone: its widgets are there again, and nothing else is wrong
    assert not any(": lost:" in text for text in newcomer.faults)
    newcomer.close()


@pytest.mark.parametrize("acts", [MEANWHILE, AFTERWARDS], ids=["meanwhile", "afterwards"])
def test_acts_are_known_and_their_cells_are_there(acts):
    for chapter, found in acts.items():
        (path,) = watch.NOTEBOOKS.glob(f"{chapter}*.ipynb")
        there = {cell.id for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"}
        listed = [act for part in found.values() for act in part] if acts is MEANWHILE else found
        made = {act[1] for act in listed if act[0] == "write"}
        for name, *arguments in listed:
            assert callable(getattr(Newcomer, name))
            assert not arguments or arguments[0] in there | made, (chapter, name, arguments)
        assert acts is AFTERWARDS or found.keys() <= there


def test_cells_that_run_once_are_there():
    for chapter, cell in ONLY_ONCE:
        (path,) = watch.NOTEBOOKS.glob(f"{chapter}*.ipynb")
        assert cell in {it.id for it in nbformat.read(path, 4).cells}


def test_the_report_has_a_row_for_each_chapter_and_says_when_others_worked():
    seconds = {"ready": 1.23, "all cells": 4.0}
    quiet = watch.report({"00-start-here": seconds, "01-vblora-live": {}}, load=0.5, minutes=3.2)
    busy = watch.report({"00-start-here": seconds}, load=1000.0, minutes=3.2)
    rows = [line.split(" | ") for line in quiet.splitlines() if line.startswith("| 0")]
    heads = next(line for line in quiet.splitlines() if line.startswith("| chapter")).split(" | ")
    assert [len(row) for row in rows] == [len(heads), len(heads)]
    assert rows[0][heads.index("kernel ready")] == "1.2" and rows[1][1].strip() == ""
    assert "upper bounds" in busy and "upper bounds" not in quiet
