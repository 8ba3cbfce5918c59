"""A ConfigExplorer in a plain page, answered by the real widget as a kernel would."""

from __future__ import annotations

import json
import re

from widget_page import PAGE, theme_variables

SYNCED = ("catalogue", "fields", "view", "code")
# What the page saves goes to the widget, and what the widget then holds comes back.
TO_KERNEL = """
  async save_changes() {
    const answer = await window.toKernel(JSON.stringify(this.state.fields));
    const { view, code } = JSON.parse(answer);
    this.load({ view, code });
    window.answers = (window.answers ?? 0) + 1;
  }
"""


class ExplorerPage:
    def __init__(self, browser, widget, dark=False, width=1180, height=900):
        self.widget = widget
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.expose_function("toKernel", self._answer)
        page = PAGE.replace("  save_changes() {}\n", TO_KERNEL)
        assert page != PAGE
        state = {name: getattr(widget, name) for name in SYNCED}
        parts = {
            "CSS": theme_variables(dark) + widget._css, "SOURCE": _script(widget._esm),
            "STATE": _script(state), "INK": "#e6e6e6" if dark else "#1b1f24",
            "PAPER": "#111111" if dark else "#ffffff", "IS_LIGHT": "false" if dark else "true",
        }  # fmt: skip
        html = re.sub("|".join(sorted(parts, key=len)[::-1]), lambda m: parts[m[0]], page)
        self.page.set_content(html)
        self.page.wait_for_function("window.ready")
        self.settle()

    def _answer(self, fields: str) -> str:
        self.widget.fields = json.loads(fields)
        return json.dumps({"view": self.widget.view, "code": self.widget.code})

    def settle(self):
        """Wait until all that was asked is answered and drawn."""
        self.page.evaluate(
            "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => "
            "setTimeout(r, 60))))"
        )

    def box(self, name):
        """The element of a field."""
        return self.page.locator(".vblora-field", has=self.page.get_by_text(name, exact=True)).first

    def slider(self, name):
        return self.box(name).locator("input[type=range]")

    def fact(self, name):
        return self.page.locator(".vblora-fact", has_text=name).locator(".vblora-fact-number")


def _script(value) -> str:
    """JSON that a script element can hold, whatever markup its texts contain."""
    return json.dumps(value).replace("<", "\\u003c")
