"""What every notebook of the course begins with: its badges and a cell that installs the lab.

    python tools/badges.py check    # exit 1 and say which notebook lacks what
    python tools/badges.py write    # write both into every notebook

The badges are a cell of their own below the title; the install cell comes before any other code.
Both cells are found again by their ids, so that running this twice changes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import repository

Notebook = dict[str, Any]
BADGE, INSTALL = "colab-badge", "install"
FOLDER = repository.ROOT / "notebooks"

# pip finds torch and numpy as they are and leaves them; if the lab could not go with them, it would
# say so and install nothing.
INSTALL_SOURCE = """\
# Installs the lab where it is missing, as on Colab. torch and numpy are kept as they are.
import importlib.metadata
import importlib.util

if importlib.util.find_spec("vblora_lab") is None:
    version = importlib.metadata.version
    kept = f"torch=={{version('torch')}} numpy=={{version('numpy')}}"
    print("Installing vblora_lab beside", kept)
    %pip install --quiet "{requirement}" {{kept}}
"""


def begun(notebook: Notebook, file: str, name: str) -> Notebook:
    """A copy with badge and install cell as they should be."""
    old = {cell.get("id"): cell for cell in notebook["cells"]}
    title, *rest = [cell for cell in notebook["cells"] if cell.get("id") not in (BADGE, INSTALL)]
    first_code = next((i for i, cell in enumerate(rest) if cell["cell_type"] == "code"), len(rest))
    badge = {
        "cell_type": "markdown",
        "id": BADGE,
        "metadata": {},
        "source": _lines(badges(name, file)),
    }
    install = {
        "cell_type": "code",
        "execution_count": None,
        "id": INSTALL,
        "metadata": {},
        "outputs": [],
        **old.get(INSTALL, {}),
        "source": _lines(install_source(name)),
    }
    cells = [title, badge, *rest[:first_code], install, *rest[first_code:]]
    return {**notebook, "cells": cells}


def badges(name: str, file: str) -> str:
    """One for each place that runs the notebook without installing anything, on a line each."""
    return f"{repository.colab_badge(name, file)}\n{repository.binder_badge(name, file)}"


def install_source(name: str) -> str:
    requirement = repository.addresses(name)["install"]
    return INSTALL_SOURCE.format(requirement=requirement).rstrip("\n")


def lacking(folder: Path = FOLDER, name: str | None = None) -> list[Path]:
    """The notebooks that don't begin as they should."""
    name = name or repository.name()
    paths = sorted(folder.glob("*.ipynb"))
    return [path for path in paths if _read(path) != begun(_read(path), path.name, name)]


def write(folder: Path = FOLDER, name: str | None = None) -> list[Path]:
    """Write badges and install cell where they are missing or differ; returns what changed."""
    name = name or repository.name()
    changed = lacking(folder, name)
    for path in changed:
        text = json.dumps(begun(_read(path), path.name, name), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    return changed


def _read(path: Path) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("check", "write"))
    writes = parser.parse_args().command == "write"
    found = write() if writes else lacking()
    for path in found:
        print(f"{path.name}: {'written' if writes else 'badges or install cell missing or wrong'}")
    if not found:
        print("every notebook has its badges and install cell")
    return 1 if found and not writes else 0


if __name__ == "__main__":
    sys.exit(main())
