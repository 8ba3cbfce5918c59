"""A widget alone in a plain page, without Jupyter: what hand and keyboard get of its traits."""

from __future__ import annotations

import base64
import json
import re

PAGE = """<!doctype html><meta charset="utf-8"><style>
:root { --jp-ui-font-color0: INK; --jp-layout-color0: PAPER; --jp-ui-font-family: sans-serif }
body { margin: 20px; background: PAPER } CSS</style>
<body data-jp-theme-light="IS_LIGHT"><div id="widget"></div><script type="module">
class Model {  // the part of an anywidget model that the widgets use
  constructor(state) { this.listeners = {}; this.state = {}; this.load(state) }
  load(state) {
    for (const [name, value] of Object.entries(state)) {
      const bytes = value?.bytes === undefined ? null : atob(value.bytes);
      this.state[name] = bytes === null ? value
        : new DataView(Uint8Array.from(bytes, (c) => c.charCodeAt(0)).buffer);
    }
    for (const name of Object.keys(state)) for (const f of this.listeners[name] ?? []) f();
  }
  get(name) { return this.state[name] }
  set(name, value) { this.load({ [name]: value }) }
  save_changes() {}
  send(message) { (this.sent ??= []).push(message) }
  on(event, listener) { (this.listeners[event.slice(7)] ??= []).push(listener) }
  off(event, listener) {
    const name = event.slice(7);
    this.listeners[name] = this.listeners[name].filter((f) => f !== listener);
  }
}
const source = new Blob([SOURCE], { type: "text/javascript" });
const widget = (await import(URL.createObjectURL(source))).default;
window.model = new Model(STATE);
window.leave = widget.render({ model: window.model, el: document.getElementById("widget") });
window.ready = true;
</script>"""


def state_of(widget) -> str:
    """The synced traits as JSON, bytes in base64."""
    state = {}
    for name in widget.traits(sync=True):
        value = getattr(widget, name)
        if isinstance(value, bytes):
            state[name] = {"bytes": base64.b64encode(value).decode()}
        elif isinstance(value, (int, float, list, dict, str)) and not name.startswith("_"):
            state[name] = value
    return json.dumps(state).replace("<", "\\u003c")  # "</script>" would end the script


def theme_variables(dark: bool) -> str:
    """Colours that JupyterLab sets and `PAGE` doesn't, as its two themes have them."""
    colours = ("#bdbdbd", "#424242", "#212121") if dark else ("#616161", "#e0e0e0", "#f5f5f5")
    names = ("--jp-ui-font-color2", "--jp-border-color2", "--jp-layout-color1")
    return f":root {{ {'; '.join(map(': '.join, zip(names, colours, strict=True)))} }}\n"


class Open:
    """A widget open in a page. `css`: rules to follow its own."""

    def __init__(self, browser, widget, dark=False, width=900, scale=1, css=""):
        self.context = browser.new_context(
            viewport={"width": width, "height": 700}, device_scale_factor=scale
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        parts = {
            "CSS": f"{widget._css}\n{css}", "SOURCE": json.dumps(widget._esm),
            "STATE": state_of(widget), "INK": "#fff" if dark else "#000",
            "PAPER": "#111" if dark else "#fff", "IS_LIGHT": "false" if dark else "true",
        }  # fmt: skip
        html = re.sub("|".join(sorted(parts, key=len)[::-1]), lambda m: str(parts[m[0]]), PAGE)
        self.page.set_content(html)
        self.page.wait_for_function("window.ready")
        self.canvas = self.page.locator(".vblora-stage canvas")
        self.settle()

    def settle(self):
        """Wait until what was asked for is drawn."""
        self.page.evaluate(
            "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )

    def press(self, *keys):
        self.canvas.focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def move(self, x, y):
        box = self.canvas.bounding_box()
        self.page.mouse.move(box["x"] + x, box["y"] + y)
        self.settle()

    def click(self, x, y):
        self.canvas.click(position={"x": x, "y": y})
        self.settle()

    def update(self, widget):
        self.page.evaluate(f"window.model.load({state_of(widget)})")
        self.settle()

    def get(self, trait):
        return self.page.evaluate(f"window.model.get('{trait}')")

    @property
    def readout(self):
        return self.page.locator(".vblora-readout").inner_text()

    @property
    def tip(self):
        tip = self.page.locator(".vblora-tip")
        return tip.inner_text() if tip.is_visible() else None

    def colours(self):
        """How many different colours the canvas shows, and its size in device pixels."""
        return self.page.evaluate(
            """() => {
              const c = document.querySelector(".vblora-stage canvas");
              const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
              const words = new Uint32Array(data.buffer);
              return { count: new Set(words).size, width: c.width, height: c.height };
            }"""
        )
