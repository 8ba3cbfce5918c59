"""What may be wrong with the site's pages: links, widgets without a form, other hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import site_widgets
from bs4 import BeautifulSoup


def problems(html: Path) -> Iterator[str]:
    """Sentences about links that lead nowhere and things that come from another host."""
    paths = sorted(set(html.rglob("*.html")) - set((html / "_static").rglob("*")))
    pages = {path: _soup(path) for path in paths}
    anchors = {
        path: {tag.get("id") or tag.get("name") for tag in soup.find_all(True)}
        for path, soup in pages.items()
    }
    for path, soup in pages.items():
        here = path.relative_to(html).as_posix()
        if re.search(rf"{site_widgets.MARK}\d", soup.get_text()):
            yield f"{here}: a widget without a static form"
        for tag in soup.find_all(True):
            for attribute in ("href", "src", "data", "srcset", "poster"):
                address = tag.get(attribute)
                if not address or address.startswith(("data:", "mailto:")):
                    continue
                parts = urlsplit(address)
                if parts.scheme or parts.netloc:
                    if tag.name != "a" and tag.get("rel") != ["canonical"]:
                        yield f"{here}: <{tag.name}> loads {address}"
                    continue
                target = path.parent.joinpath(unquote(parts.path)) if parts.path else path
                target = target.resolve() / "index.html" if target.is_dir() else target.resolve()
                if not target.is_file():
                    yield f"{here}: {address} leads nowhere"
                elif target in pages and parts.fragment:
                    fragment = unquote(parts.fragment)
                    if fragment not in anchors[target] and fragment not in ("", "top"):
                        yield f"{here}: {address} names a part that isn't there"


def _soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
