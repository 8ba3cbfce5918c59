"""A table as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def as_text(head: Sequence[str], rows: Rows, caption: str = "") -> str:
    """Columns as wide as they need be, the first one to the left; the caption on a line above."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in table
    ]
    return "\n".join([caption, *lines] if caption else lines)


def as_html(head: Sequence[str], rows: Rows, caption: str = "") -> str:
    """The same as a table element; texts are escaped, colours those of the page."""

    def row(cells: Sequence[str], tag: str) -> str:
        own = "border-bottom:1px solid currentColor" if tag == "th" else "white-space:nowrap"
        style = f"padding:2px 10px;font-variant-numeric:tabular-nums;{own}"
        return "".join(
            f'<{tag} style="text-align:{"right" if i else "left"};{style}">'
            f"{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return (
        '<table style="border-collapse:collapse;color:inherit">'
        '<caption style="text-align:left;padding:2px 10px">'
        f"{html.escape(caption)}</caption>"
        f"<tr>{row(head, 'th')}</tr>{body}</table>"
    )


def number(value: float, form: str) -> str:
    """A number in this format, or an en dash for one that is not known."""
    return "–" if math.isnan(value) else format(value, form)
