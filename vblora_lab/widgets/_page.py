"""A widget as one HTML file that needs neither kernel nor network."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any

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
        png: a picture for readers without JavaScript.
        script, style: of the widget: its module, with `render`, and its CSS.
    """
    return _PAGE.format(
        title=escape(title),
        css=style,
        picture=base64.b64encode(png).decode(),
        state=_json(state),
        answers=_json(answers),
        source=f"{script}\n{source('stored_model.js')}",
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
<noscript><img alt="{title}" style="max-width: 100%"
  src="data:image/png;base64,{picture}"></noscript>
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


def _json(value: Any) -> str:
    """JSON for a script element, bytes in base64. A "<" could end the element, so there is none."""

    def as_text(value: Any) -> dict[str, str]:
        return {"base64": base64.b64encode(value).decode()}

    return json.dumps(value, default=as_text).replace("<", "\\u003c")
