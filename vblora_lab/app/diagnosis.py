"""What the doctor found: for people as a table, for scripts as JSON, and as a verdict."""

from __future__ import annotations

import html
import json
import textwrap
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from vblora_lab.tables import Html, as_html

Status = Literal["ok", "warning", "error"]
VERSION = metadata.version("vblora-lab")
SIGNS = {"ok": "✓", "warning": "!", "error": "✗"}
COLOURS = {"ok": "#26863f", "warning": "#b86a12", "error": "#e5484d"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    status: "ok"; "warning", something works worse than it could; "error", the lab can't run.
    found: what was found. advice: what to do about it, empty where all is well.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found; prints as a table, and shows as one in a notebook."""

    checks: tuple[Check, ...]

    @property
    def can_run(self) -> bool:
        """Whether the lab can run here: nothing is an error."""
        return all(check.status != "error" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError names those there are."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r}; there are {', '.join(check.name for check in self.checks)}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "vblora_lab": VERSION,
            "can_run": self.can_run,
            "checks": [asdict(check) for check in self.checks],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @property
    def verdict(self) -> str:
        counts = {s: sum(check.status == s for check in self.checks) for s in SIGNS}
        if counts["error"]:
            return f"The lab can't run here: see {SIGNS['error']}."
        if counts["warning"]:
            return f"The lab runs here. What could be better: see {SIGNS['warning']}."
        return "The lab runs here."

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"vblora_lab {VERSION}"]
        for check in self.checks:
            head = f"{SIGNS[check.status]} {check.name:<{width}}  "
            lines += textwrap.wrap(
                check.found, 98, initial_indent=head, subsequent_indent=" " * len(head)
            )
            indent = " " * len(head) + "→ "
            lines += textwrap.wrap(
                check.advice, 98, initial_indent=indent, subsequent_indent=" " * len(indent)
            )
        return "\n".join([*lines, "", self.verdict])

    def _repr_html_(self) -> str:
        table = as_html((), [_cells(check) for check in self.checks], text_columns=3, wrap=True)
        return (
            '<div style="max-width:60em;line-height:1.5">'
            f"<b>vblora_lab {VERSION}</b>: {html.escape(self.verdict)}{table}</div>"
        )


def _cells(check: Check) -> tuple[str, str, str]:
    colour, sign = COLOURS[check.status], SIGNS[check.status]
    advice = f"<br>→ {html.escape(check.advice)}" if check.advice else ""
    return (
        Html(f'<b style="color:{colour}" title="{check.status}">{sign}</b>'),
        Html(f'<b style="white-space:nowrap">{html.escape(check.name)}</b>'),
        Html(f"{html.escape(check.found)}{advice}"),
    )
