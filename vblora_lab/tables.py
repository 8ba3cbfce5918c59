"""How amounts and tables are written, for a terminal and for a notebook: here and nowhere else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]

# Half-transparent grey is a rule on white and on black. Pages style tables as they like (zebra
# rows, larger print, narrower cells): what would spoil the alignment is set here.
RULE = "1px solid rgba(128,128,128,.45)"
CELL = "border:0;background:none;font-size:inherit;vertical-align:baseline;"
TABLE = (
    "margin:1em 0 0;border:0;border-collapse:collapse;color:inherit;font:inherit;"
    "font-variant-numeric:tabular-nums"
)


class Html(str):
    """A cell that is HTML already, and isn't escaped."""


# --- amounts


def readable(size: float) -> str:
    """Bytes in the largest binary unit of which there is one: "1.5 MiB"."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def in_bytes(size: int) -> str:
    """Bytes to the last one: "1,536 bytes"."""
    return f"{size:,} bytes"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 layer", "2 layers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def about(seconds: float) -> str:
    """A time to come, in one unit: "12 s", "3 min" or "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number(value: float, form: str) -> str:
    """A number in this format, or an en dash for one that is not known."""
    return "–" if math.isnan(value) else format(value, form)


# --- tables


def aligned(rows: Rows, text_columns: int = 1, indent: str = "") -> list[str]:
    """Rows as lines, in columns that are as wide as they need be.

    Args:
        rows: of equally many cells.
        text_columns: how many, from the first on, are set to the left; the others to the right.
        indent: before each line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def as_text(head: Sequence[str], rows: Rows, caption: str = "") -> str:
    """A table for a terminal; the caption on a line above."""
    lines = aligned([head, *rows])
    return "\n".join([caption, *lines] if caption else lines)


def as_html(
    head: Sequence[str], rows: Rows, caption: str = "", *, text_columns: int = 1, wrap: bool = False
) -> str:
    """A table in the colours of the page, which scrolls where there is no room for it.

    Texts are escaped, unless they are `Html`.

    Args:
        head: of the columns; empty for none.
        rows: of equally many cells.
        caption: above the table.
        text_columns: how many columns, from the first on, are set to the left.
        wrap: whether long cells may take several lines.
    """
    space = "white-space:normal;" if wrap else "white-space:pre;"

    def line(cells: Sequence[str], tag: str, own: str) -> str:
        row = ""
        for i, cell in enumerate(cells):
            side = "left" if i < text_columns else "right"
            gap = 0 if i == len(cells) - 1 else 20
            style = f"{CELL}{space}text-align:{side};padding:1px {gap}px 1px 0;{own}"
            text = cell if isinstance(cell, Html) else html.escape(cell)
            row += f'<{tag} style="{style}">{text}</{tag}>'
        return f'<tr style="background:none">{row}</tr>'

    title = (
        '<caption style="text-align:left;font-weight:bold;color:inherit;padding:0 0 2px">'
        f"{html.escape(caption)}</caption>"
    )
    heads = line(head, "th", f"border-bottom:{RULE};font-weight:normal;opacity:.75;")
    body = "".join(line(cells, "td", "") for cells in rows)
    rows_of_all = f"{title if caption else ''}{heads if head else ''}{body}"
    return f'<div style="overflow-x:auto"><table style="{TABLE}">{rows_of_all}</table></div>'


def for_stylesheet(name: str, head: Sequence[str], rows: Rows) -> str:
    """A table of a CSS class, without styles of its own: for pages that bring a stylesheet.

    Each cell also has its column's head as `data-head`, for pages so narrow that cells stand below
    each other.
    """

    def line(cells: Sequence[str]) -> str:
        return "".join(
            f'<td data-head="{html.escape(title)}">'
            f"{cell if isinstance(cell, Html) else html.escape(cell)}</td>"
            for title, cell in zip(head, cells, strict=True)
        )

    heads = "".join(f"<th scope=col>{html.escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{line(cells)}</tr>" for cells in rows)
    return f'<table class="{name}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
