"""What a newcomer does with what a cell shows: presses, chooses, types, drags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from browser_lab import LONG

SOON = 20_000  # milliseconds in which a press must show


class Hands:
    """The acts of a `Newcomer`, each on a cell by its id, and each must show."""

    page: Any

    def at(self, cell: str) -> Any:
        raise NotImplementedError

    def output(self, cell: str) -> Any:
        raise NotImplementedError

    def fault(self, text: str) -> None:
        raise NotImplementedError

    @contextmanager
    def changes(self, cell: str, by: str) -> Iterator[None]:
        """What is done in the block must change what the cell shows, or it is a fault."""
        from playwright.sync_api import TimeoutError as NothingChanged

        handle = self.at(cell)
        before = handle.evaluate("c => watched.look(c)")
        yield
        try:
            self.page.wait_for_function(
                "([c, before]) => watched.look(c) !== before", arg=[handle, before], timeout=SOON
            )
        except NothingChanged:
            self.fault(f"{cell}: button: {by} changes nothing")

    def press(self, cell: str, button: str, until: str = "", which: str = "0") -> None:
        """Press a button by its words; `until` is what the panel's head must say then.

        which: of several of that name, from 0.
        """
        place = self.output(cell).get_by_role("button", name=button).nth(int(which))
        with self.changes(cell, button):
            place.click(timeout=SOON)
        if until:
            self.says(cell, until)

    def says(self, cell: str, words: str) -> None:
        """Wait until a cell shows these words."""
        from playwright.sync_api import TimeoutError as NotSaid

        try:
            self.output(cell).get_by_text(words).first.wait_for(timeout=LONG)
        except NotSaid:
            self.fault(f"{cell}: button: never says {words!r}")

    def gone(self, cell: str, words: str) -> None:
        """Wait until a cell no longer shows these words."""
        from playwright.sync_api import TimeoutError as Stays

        try:
            self.output(cell).get_by_text(words).first.wait_for(state="hidden", timeout=LONG)
        except Stays:
            self.fault(f"{cell}: button: says {words!r} for ever")

    def step(self, cell: str, number: str) -> None:
        """Wait until a panel tells of that many steps."""
        self.page.wait_for_function(
            """([id, step]) => {
              const cell = watched.cellOf(id);
              const text = cell.outputArea.node.querySelector(".vblora-steps")?.textContent ?? "";
              return Number(text.split(" ")[1]) >= step;
            }""",
            arg=[cell, int(number)],
            timeout=LONG,
        )

    def choose(self, cell: str, label: str, option: str) -> None:
        """Choose from a list by its label."""
        place = self.output(cell).get_by_label(label, exact=True).first
        with self.changes(cell, f"{label} = {option}"):
            place.select_option(option, timeout=SOON)

    def enter(self, cell: str, label: str, text: str) -> None:
        """Type into a field, by its label."""
        place = self.output(cell).get_by_label(label, exact=True).first
        with self.changes(cell, f"{label} = {text}"):
            place.fill(text, timeout=SOON)

    def tick(self, cell: str, label: str) -> None:
        """Switch a box on or off, by its label."""
        place = self.output(cell).get_by_label(label, exact=True).first
        with self.changes(cell, label):
            place.click(timeout=SOON)

    def keys(self, cell: str, place: str, *keys: str) -> None:
        """Keys in a part of a cell's output, by its CSS selector. Each must show."""
        part = self.output(cell).locator(place).first
        for key in keys:
            with self.changes(cell, f"{key} in {place}"):
                part.focus(timeout=SOON)
                self.page.keyboard.press(key)

    def drag(self, cell: str, place: str, right: str, down: str) -> None:
        """Drag the middle of a part of a cell's output, by its CSS selector, by so many pixels."""
        part = self.output(cell).locator(place).first
        with self.changes(cell, f"a drag of {place}"):
            part.scroll_into_view_if_needed()
            box = part.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            self.page.mouse.move(x, y)
            self.page.mouse.down()
            self.page.mouse.move(x + int(right), y + int(down), steps=5)
            self.page.mouse.up()

    def press_all(self, cell: str, leave: str = "") -> None:
        """Every button and every slider of a cell that can be used now. `leave`: names of those
        that are left alone, as an expression."""
        output = self.output(cell)
        for i in range(output.get_by_role("button").count()):
            button = output.get_by_role("button").nth(i)
            if not button.count() or not button.is_visible() or not button.is_enabled():
                continue
            name = button.get_attribute("aria-label") or button.inner_text().strip()
            if leave and re.search(leave, name):
                continue
            with self.changes(cell, f"button {name!r}"):
                button.click(timeout=SOON)
        for i in range(output.locator("input[type=range]").count()):
            slider = output.locator("input[type=range]").nth(i)
            if not slider.is_visible() or not slider.is_enabled():
                continue
            at_the_end = slider.evaluate("e => Number(e.value) >= Number(e.max)")
            with self.changes(cell, f"slider {slider.get_attribute('aria-label') or i}"):
                slider.focus()
                self.page.keyboard.press("ArrowLeft" if at_the_end else "ArrowRight")

    def first_sign(self, cell: str, button: str = "Train") -> dict[str, float]:
        """Press a panel's button; seconds to its first sign of life and to its first step, and the
        longest time in which nothing on it moved."""
        chosen = self.at(cell)
        place = self.output(cell).get_by_role("button", name=button).first
        place.scroll_into_view_if_needed()
        chosen.evaluate("c => watched.watchPanel(c)")
        place.click(timeout=SOON)
        self.step(cell, "1")
        seen = self.page.evaluate("() => { stopWatching(); return watchedPanel; }")
        at = [0.0, *(moment for moment, *_ in seen)]
        return {
            "first sign": at[1],
            "longest silence": max(after - before for before, after in pairwise(at)),
            "first step": next((m for m, _, _, s in seen if re.match("step [1-9]", s)), at[-1]),
        }
