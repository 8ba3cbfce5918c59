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
from report import report  # noqa: E402

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
WHITE = '<rect width="90" height="30" fill="#005"/><text x="9" y="20" fill="#fff">white</text>'
ON_A_BOX = f"HTML('<svg class=vblora-x>{WHITE}</svg>')"
BUTTONS = """
out, count = ipywidgets.Label("0"), ipywidgets.Button(description="count")
count.on_click(lambda _: setattr(out, "value", out.value + "1"))
ipywidgets.VBox([count, ipywidgets.Button(description="nothing"), out])
"""


def test_what_is_wrong_is_found_and_what_is_right_is_not(browser, lab, tmp_path, monkeypatch):
    monkeypatch.setattr("hands.SOON", 3000)
    lab.write("00-broken", SHOW, *BROKEN, "print('fine')", ON_A_BOX, BUTTONS)
    newcomer = Newcomer(browser, lab, "00-broken")
    for cell in newcomer.ids():
        newcomer.run(cell)
    *_, fine, on_a_box, buttons = newcomer.ids()
    newcomer.press_all(buttons)
    newcomer.pictures(tmp_path, watch.LOOK_FOR)
    found = list(newcomer.faults)
    for cell, fault in zip(newcomer.ids()[1:], BROKEN.values(), strict=False):
        which = fault if fault.startswith("console") else f"{cell}: {fault}"
        assert any(text.startswith(which) for text in found), (which, found)
    assert not any(text.startswith((fine, on_a_box)) for text in found)
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


def test_the_report_keeps_the_rows_of_chapters_that_were_not_watched_now():
    every = ["00-start-here", "01-vblora-live", "02-x"]
    seconds = {"ready": 1.23, "all cells": 4.0, "load": 2.5}
    before = report("", {"01-vblora-live": seconds, "00-start-here": {}}, every, "old machine")
    page = report(before, {"00-start-here": seconds | {"ready": 9.0}}, every, "new machine")
    same = report(page, {}, every, "new machine")
    heads, _, *rows = (line.strip("| ").split(" | ") for line in page.splitlines() if "|" in line)
    assert page == same and "Not measured yet: 02." in page
    assert [row[0] for row in rows] == every[:2]
    assert [row[heads.index("kernel ready")] for row in rows] == ["9.0", "1.2"]
    assert [row[heads.index("load")] for row in rows] == ["2.5", "2.5"]
    told = {row[0]: f"- **{row[-1]}**: {{}} machine" for row in rows}
    assert told["00-start-here"].format("new") in page
    assert told["01-vblora-live"].format("old") in page
