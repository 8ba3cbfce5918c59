"""Pages that need no kernel, opened from a file with no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IS_DARK = """element => {
  const sum = (colour) => colour.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
  const behind = (e) => (e ? getComputedStyle(e).backgroundColor : "rgb(255, 255, 255)");
  let ground = element;
  while (ground && behind(ground) === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  return sum(getComputedStyle(element).color) > sum(behind(ground));
}"""


def open_file(browser: Any, path: Path, width: int = 1180, dark: bool = False) -> Any:
    """The page. What goes wrong in it, or is asked of elsewhere, is in its `wrong`."""
    page = browser.new_context(
        offline=True, viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
    ).new_page()  # fmt: skip
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
    allowed = (path.as_uri(), "data:", "blob:")
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(allowed) else page.wrong.append(asked.url),
    )
    page.goto(path.as_uri())
    page.locator(".vblora-panel, .vblora-chart").first.wait_for()
    return page


def overflows(page: Any) -> bool:
    """Whether something is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def is_dark(element: Any) -> bool:
    """Whether its ink is lighter than its ground."""
    return bool(element.evaluate(IS_DARK))
