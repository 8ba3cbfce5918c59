"""A widget as one HTML file that needs neither kernel nor network."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import anywidget

from vblora_lab.widgets._source import source

Answers = dict[str, dict[str, dict[str, Any]]]  # trait -> its value -> other traits


def page(
    title: str, state: dict[str, Any], answers: Answers, png: bytes, *, script: str, style: str
) -> str:
    """The text of the file.

    Args:
        title: of the page.
        state: the traits of the widget.
        answers: what the kernel would say when a trait is set.
        png: a picture for readers without JavaScript; none if empty.
        script, style: of the widget: its module, with `render`, and its CSS.
    """
    return _PAGE.format(
        title=escape(title),
        css=style,
        picture=_picture(title, png) if png else "",
        state=_json(state),
        answers=_json(answers),
        source=f"{source('stored_model.js')}\n{script}",
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 1280px; margin: 24px auto; padding: 0 20px; }}
[data-jp-theme-light="false"] {{
  --jp-ui-font-color0: #f0f3f6; --jp-ui-font-color2: #a7b0ba; --jp-border-color2: #3b434c;
  --jp-layout-color0: #15191e; --jp-layout-color1: #1d2228; color-scheme: dark;
  background: #15191e;
}}
{css}</style></head>
<body>
<div id="widget"></div>
{picture}
<script type="module">
{source}
{{  // names of its own, whatever the parts above declare
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = (isDark) => {{ document.body.dataset.jpThemeLight = String(!isDark); }};
  dark.addEventListener("change", () => follow(dark.matches));
  follow(dark.matches);
  const model = new StoredModel({state}, {answers});
  render({{ model, el: document.getElementById("widget") }});
  // A page that this one is embedded in gets its height, and may say whether it is dark.
  if (parent !== window) {{
    addEventListener("message", ({{ data }}) => {{
      if (typeof data?.vbloraDark === "boolean") follow(data.vbloraDark);
    }});
    const tell = () => parent.postMessage({{ vbloraHeight: document.body.offsetHeight + 48 }}, "*");
    new ResizeObserver(tell).observe(document.body);
  }}
}}
</script>
</body></html>
"""


def own_state(widget: anywidget.AnyWidget) -> dict[str, Any]:
    """The traits that a widget has beyond those of every anywidget: the state of its page."""
    common = anywidget.AnyWidget.class_trait_names(sync=True)
    own = (name for name in widget.trait_names(sync=True) if name not in common)
    return {name: getattr(widget, name) for name in own if not name.startswith("_")}


def write_page(
    widget: anywidget.AnyWidget,
    path: str | Path,
    title: str,
    script: str,
    style: str,
    **instead: object,
) -> Path:
    """Write the page of a widget, with its own traits and a picture of its `figure`.

    Args:
        widget: has a `figure`.
        path: of the file; its folder must exist.
        title, script, style: as for `page`.
        instead: values of traits that the page has in place of the widget's.
    """
    png = widget.figure()._repr_png_()[0]
    text = page(title, own_state(widget) | instead, {}, png, script=script, style=style)
    path = Path(path)
    path.write_text(text, encoding="utf-8")
    return path


def _picture(title: str, png: bytes) -> str:
    address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    alt = escape(title)
    return f'<noscript><img alt="{alt}" style="max-width: 100%" src="{address}"></noscript>'


def _json(value: Any) -> str:
    """JSON for a script element, bytes in base64. A "<" could end the element, so there is none."""

    def as_text(value: Any) -> dict[str, str]:
        return {"base64": base64.b64encode(value).decode()}

    return json.dumps(value, default=as_text).replace("<", "\\u003c")
