"""A newcomer in a JupyterLab: runs cells, presses what can be pressed, and notes what is wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser_lab import LONG, Jupyter, wait_until_idle
from hands import SOON, Hands

PAGE = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
SHAPES = {"1400": (1400, 1000), "1024": (1024, 1000)}
TALLEST = 1500  # CSS pixels of one picture
# Of the browser, of JupyterLab itself, or of a kernel that was meant to end.
NOT_OURS = re.compile(
    r"favicon|ERR_NAME_NOT_RESOLVED|WebSocket|Canceled future|Kernel (?:connection|does not exist)"
)


class Newcomer(Hands):
    """One notebook in one page.

    Attributes:
        faults: what was found wrong, each once.
        console: what the browser's console said of errors, as far as it is the notebook's.
    """

    def __init__(self, browser: Any, lab: Jupyter, name: str) -> None:
        self.name = name
        self.faults: dict[str, None] = {}
        width, height = SHAPES["1400"]
        self.began = time.monotonic()
        self.page = lab.open(
            browser, name, viewport={"width": width, "height": height}, on_page=self._listen
        )
        self.ready_after = time.monotonic() - self.began
        self._look_closely()

    def close(self) -> None:
        self.page.context.close()

    def fault(self, text: str) -> None:
        self.faults.setdefault(text)

    def _listen(self, page: Any) -> None:
        def on_console(message: Any) -> None:
            if message.type == "error" and not NOT_OURS.search(message.text):
                self.fault(f"console: {message.text[:300]}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: self.fault(f"console: {str(error)[:300]}"))

    def _look_closely(self) -> None:
        self.page.evaluate(PAGE)
        # What was in its place before the file was read had other cells.
        self.page.wait_for_function(
            "() => { try { return watched.notebook(); } catch { return 0; } }"
        )
        self.page.evaluate("() => watched.countRuns()")

    # ---- cells

    def ids(self, kind: str = "code") -> list[str]:
        """The ids of the notebook's cells of a kind, in order."""
        return self.page.evaluate(
            "kind => watched.cells().filter((c) => c.model.type === kind).map((c) => c.model.id)",
            kind,
        )

    def at(self, cell: str) -> Any:
        """A handle on a cell, scrolled to and chosen."""
        return self.page.evaluate_handle(
            """async id => {
              const notebook = watched.notebook();
              const at = notebook.widgets.indexOf(watched.cellOf(id));
              notebook.activeCellIndex = at;
              notebook.deselectAll();
              notebook.mode = "command";
              await notebook.scrollToCell(notebook.widgets[at], "center");
              notebook.node.focus();
              return notebook.widgets[at];
            }""",
            cell,
        )

    def run(self, cell: str, refused: str = "") -> float:
        """Run a cell by its keys; seconds until it ended.

        A cell that fails is a fault, unless its error says what it should: `refused`.
        """
        self.at(cell)
        before = self.page.evaluate("id => ({ ...watched.runs[id] })", cell)
        began = time.monotonic()
        self._press_run(cell, before["begun"])
        self.ended(cell, before["ended"], refused)
        return time.monotonic() - began

    def _press_run(self, cell: str, before: int) -> None:
        """The keys, until they are heard: JupyterLab shows its cells before it knows its keys."""
        from playwright.sync_api import TimeoutError as NotHeard

        for _ in range(30):
            self.page.keyboard.press("Control+Enter")
            try:
                self.page.wait_for_function(
                    "([id, before]) => watched.runs[id].begun > before",
                    arg=[cell, before],
                    timeout=2000,
                )
                return
            except NotHeard:
                self.at(cell)
        raise RuntimeError(f"cell {cell} can't be run")

    def ended(self, cell: str, before: int, refused: str = "") -> None:
        """Wait until a cell has ended once more than `before`, and look whether it failed."""
        self.page.wait_for_function(
            """([id, before]) => watched.runs[id].ended > before
              && watched.cellOf(id).model.executionState === "idle" """,
            arg=[cell, before],
            timeout=5 * LONG,
        )
        self.look_for_errors(cell, refused)

    def look_for_errors(self, cell: str, refused: str = "") -> None:
        errors = self.page.evaluate(
            """id => {
              const { model } = watched.cellOf(id);
              return model.outputs.toJSON().filter((o) => o.output_type === "error")
                .map((o) => `${o.ename}: ${o.evalue}`);
            }""",
            cell,
        )
        for error in errors:
            if not refused or refused not in error:
                self.fault(f"{cell}: error: {error[:300]}")
        if refused and not errors:
            self.fault(f"{cell}: error: it should have been refused: {refused}")

    def output(self, cell: str) -> Any:
        """A locator of what a cell shows."""
        self.page.evaluate("id => { watched.cellOf(id).node.dataset.watched = id }", cell)
        return self.page.locator(f'[data-watched="{cell}"] .jp-Cell-outputWrapper')

    def has_output(self, cell: str) -> bool:
        return self.page.evaluate("id => watched.cellOf(id).model.outputs.length > 0", cell)

    def has_picture(self, cell: str) -> bool:
        return self.page.evaluate(
            "id => !!watched.cellOf(id).outputArea.node.querySelector('canvas, svg, img')", cell
        )

    def write(self, cell: str, code: str, below: str) -> None:
        """Type a new code cell below another one; it is known by the name `cell` then."""
        self.at(below)
        self.page.keyboard.press("b")
        self.page.keyboard.press("Enter")
        self.page.keyboard.insert_text(code.strip())
        self.page.keyboard.press("Escape")
        self.page.evaluate("name => watched.call(name)", cell)

    # ---- pages and kernels

    def save(self) -> None:
        with self.page.expect_response(
            lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url
        ):
            self.page.keyboard.press("Control+s")

    def reload(self) -> None:
        """Save, load the page anew, and see whether all widgets are there again."""
        from playwright.sync_api import TimeoutError as Lost

        self.at(self.ids()[0])
        before = self.page.evaluate("() => watched.widgets()")
        self.save()
        self.page.reload()
        wait_until_idle(self.page)
        self._look_closely()
        for cell, count in before.items():
            self.at(cell)
            try:
                self.page.wait_for_function(
                    "([id, count]) => (watched.widgets()[id] ?? 0) >= count",
                    arg=[cell, count],
                    timeout=SOON,
                )
            except Lost:
                self.fault(f"{cell}: lost: its widgets are gone after the page was loaded again")

    def restart(self) -> float:
        """Restart the kernel and run all cells, by the menu; seconds until the last one ended."""
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        began = time.monotonic()
        *_, last = self.ids()
        before = self.page.evaluate("id => watched.runs[id].ended", last)
        self.ended(last, before)
        for cell in self.ids():
            self.look_for_errors(cell)
        return time.monotonic() - began

    # ---- pictures

    def wear(self, dark: bool) -> None:
        """Change JupyterLab's theme, as its menu does."""
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        self.page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme
        )
        self.page.locator(f"body[data-jp-theme-light={'false' if dark else 'true'}]").wait_for(
            state="attached"
        )

    def pictures(self, folder: Path, kinds: list[str]) -> None:
        """All of the notebook in both themes and both shapes, with a look for what is wrong.

        kinds: what to look for, by the names in `page.js`.
        """
        for dark in (False, True):
            self.wear(dark)
            for shape, (width, _) in SHAPES.items():
                theme = "dark" if dark else "light"
                for number, png in enumerate(self._pages(width)):
                    path = folder / f"{self.name[:2]}-{shape}-{theme}-{number:02}.png"
                    path.write_bytes(png)
                for text in self.page.evaluate("kinds => watched.faults(kinds)", kinds):
                    self.fault(f"{text} [{shape} {theme}]")
        self.wear(dark=False)
        self._size(*SHAPES["1400"])

    def _size(self, width: int, height: int) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        settle(self.page)

    def _pages(self, width: int) -> Iterator[bytes]:
        """The notebook from its top to its end, in pictures of at most `TALLEST`."""
        self._size(width, 1000)
        for _ in range(3):  # cells that come into view may be taller than JupyterLab thought
            self._size(width, min(round(self._end()) + 60, 30_000))
        left, end = 0, min(self._end(), 30_000)
        for top in range(0, round(end), TALLEST):
            height = min(TALLEST, end - top)
            yield self.page.screenshot(
                clip={"x": left, "y": top, "width": width - left, "height": height}
            )
            left = self.page.locator(".jp-NotebookPanel").bounding_box()["x"]

    def _end(self) -> float:
        """Where the last cell ends, in CSS pixels from the top of the page."""
        return self.page.evaluate(
            """() => {
              watched.notebook().node.querySelector(".jp-WindowedPanel-outer").scrollTop = 0;
              return Math.max(...watched.cells().map((c) => c.node.getBoundingClientRect().bottom));
            }"""
        )


def settle(page: Any) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate(
        "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r))))"
    )
