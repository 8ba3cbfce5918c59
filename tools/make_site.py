"""Make a web site of the course, in build/site/html: `make site`, or `python tools/make_site.py`.

1. Every notebook is run, so that its pages show what its cells show, training included. Runs are
   kept in build/site/runs, and repeated when the notebook or the package has changed.
   `--stored` runs nothing and shows the outputs that are stored in the repository.
2. The sources of the pages are gathered in build/site/source: README as the overview, those
   notebooks, and a reference of every public name, room by room.
3. Sphinx builds the pages; a warning is an error. The front page and those in play/, which are
   played with, come beside them (`play.py`). Finally, every link and anchor is followed, and
   nothing may be loaded from another host.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import badges
import nbformat
import play
import repository
from nbformat import NotebookNode
from site_links import problems
from site_runs import run
from sphinx.cmd.build import build_main

import notebooks
import vblora_lab

ROOT = repository.ROOT
BUILD = ROOT / "build" / "site"
README = "README.md"
OVERVIEW = f"{Path(play.COURSE).stem}.md"
COURSE = [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
SITE = repository.addresses(repository.name())["Documentation"]
GLOSSARY = "notebooks/glossary.md"
MORE = {  # with their names in the navigation
    "docs/serving.md": "Serving many adapters",
    "benchmarks/results/quality.md": "Quality",
    "benchmarks/results/speed.md": "Speed",
    "vblora_lab/assets/mini-opt/README.md": "mini-OPT",
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changelog",
}


@dataclass(frozen=True)
class Room:
    """A page of the reference.

    Attributes:
        title: its heading.
        intro: what the names on it are for.
        homes: modules of public names, as the package's ``__init__.pyi`` has them.
        whole: modules that are shown with all that they document.
    """

    title: str
    intro: str
    homes: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


ROOMS = {
    "method": Room(
        "The method",
        "The config with its 15 fields, the adapted layers, the model that holds them, and the "
        "few functions that all of it comes down to.",
        ("tuner.config", "tuner.layer", "tuner.model"),
        ("admixture",),
    ),
    "peft": Room(
        "Adapters and PEFT",
        "Making, loading and storing adapters with PEFT's own classes and files, and the way to "
        "LoRA and back.",
        (
            "tuner.peft",
            "tuner.seam",
            "tuner.starts",
            "tuner.frozen",
            "tuner.turns",
            "convert.export",
            "convert.many",
            "convert.compress",
            "convert.save",
        ),
    ),
    "serving": Room(
        "Many adapters",
        "A store for thousands of adapters and the banks that they share, adapters in memory for "
        "mixed batches, and the plug-in by which vLLM serves them.",
        ("serving.store", "serving.live"),
        ("serving.store_adapter", "serving.store_sizes", "serving.plugin"),
    ),
    "planning": Room(
        "Before training",
        "What a config would do to a model, and configs to start from.",
        ("planning.plan", "planning.presets"),
        ("planning.presets",),
    ),
    "training": Room(
        "Training",
        "Base models, tasks, sessions, and what is kept of a run. A session reports all that "
        "happens as events.",
        (
            "bases",
            "data",
            "train.session",
            "train.capturing",
            "train.optimizer",
            "train.one_bank",
            "train.probe",
            "train.capturing",
            "train.compare",
            "train.tune",
            "train.tune_result",
            "runs.results",
            "runs.runs",
            "runs.trace",
        ),
        ("runs.events", "data.styles"),
    ),
    "reading": Room(
        "What the bank does",
        "Reading an adapter as plain arrays, and changing it to see what happens.",
        (
            "inspection.selection",
            "inspection.reading",
            "inspection.updates",
            "inspection.counterfactual",
        ),
        ("inspection.chance", "inspection.one_layer"),
    ),
    "widgets": Room(
        "Widgets and figures",
        "Widgets for Jupyter, and the same as figures that stay.",
        ("widgets",),
        (
            "plots.run",
            "plots.bank",
            "plots.modules",
            "plots.plan",
            "plots.tune",
            "plots.sub_vector",
            "plots.users",
            "plots.served",
        ),
    ),
    "course": Room(
        "Course and machine",
        "The exercises of the notebooks, the demo, and what this machine can do.",
        ("course", "app.demo", "app.doctor"),
    ),
    "errors": Room("Errors", "What is raised, and what it tells you.", whole=("errors",)),
}


# --- gathering


def gather(source: Path, course: list[Path]) -> None:
    """Put the sources of all pages into a folder.

    Args:
        source: the folder; what was in it is deleted.
        course: the notebooks to show, with outputs.

    Raises:
        ValueError: a link in them leads nowhere.
    """
    shutil.rmtree(source, ignore_errors=True)
    for page, text in reference().items():
        _write(source / page, text)
    overview = local((ROOT / README).read_text(encoding="utf-8"), README, source)
    _write(source / OVERVIEW, overview + contents())
    for page, name in {GLOSSARY: "Glossary", **MORE}.items():
        text = local((ROOT / page).read_text(encoding="utf-8"), page, source)
        _write(source / page, text if text.startswith("# ") else f"# {name}\n\n{text}")
    for path in course:
        notebook, page = nbformat.read(path, as_version=4), f"notebooks/{path.name}"
        notebook.cells = [cell for cell in notebook.cells if cell.id != badges.INSTALL]
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = local(cell.source, page, source)
            for output in cell.get("outputs", []):
                _tidy_picture(cell, output)
        _write(source / page, nbformat.writes(notebook))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _tidy_picture(cell: NotebookNode, output: NotebookNode) -> None:
    """Make a picture's file smaller, and put what goes with it where MyST-NB looks for it."""
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = notebooks.with_few_colours(output.data["image/png"])
        about = output.metadata.get("image/png", {})
        about.pop("height", None)  # a narrow page changes the width
        cell.metadata["mystnb"] = {"image": {"alt": about.get("alt", "")}}


_LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")


def local(text: str, page: str, source: Path) -> str:
    """Markdown of the repository, with links that work on the site.

    A file that is a page stays a link to it, a picture is copied, any other file becomes an address
    in the repository. A picture from another host becomes its text: a badge is a plain link then.
    An address of the site itself becomes one from page to page.

    Args:
        text: Markdown.
        page: the file that it stands in, from the root of the repository.
        source: where pictures are copied to.

    Raises:
        ValueError: a link leads nowhere.
    """

    def link(match: re.Match[str]) -> str:
        is_picture, label, target = match.groups()
        label = _LINK.sub(link, label)
        parts = urlsplit(target)
        if target.startswith(SITE):  # a page that Sphinx knows nothing of
            up = "../" * page.count("/")
            return f'<a href="{up}{target.removeprefix(SITE) or "index.html"}">{label}</a>'
        if parts.scheme:
            return label if is_picture else f"[{label}]({target})"
        if not parts.path:
            return f"[{label}]({target})"
        file = (ROOT / page).parent.joinpath(unquote(parts.path)).resolve()
        if not file.is_relative_to(ROOT) or not file.exists():
            raise ValueError(f"{page}: the link to {target} leads nowhere.")
        place = file.relative_to(ROOT).as_posix()
        if is_picture:
            (source / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, source / place)
        elif place == README:
            up = os.path.relpath(OVERVIEW, Path(page).parent)
            target = Path(up).as_posix() + (f"#{parts.fragment}" if parts.fragment else "")
        elif place not in {*COURSE, GLOSSARY, *MORE}:
            kind = "tree" if file.is_dir() else "blob"
            target = f"{repository.HOST}{repository.name()}/{kind}/{repository.BRANCH}/{place}"
        return f"{is_picture}[{label}]({target})"

    blocks = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)  # odd ones are code
    blocks[::2] = [_LINK.sub(link, block) for block in blocks[::2]]
    return "".join(blocks)


def contents() -> str:
    """The navigation, below the overview's text."""
    course = {page: f"{Path(page).stem[:2]} {_title(ROOT / page)}" for page in COURSE}
    parts = {
        "The course": {**course, GLOSSARY: "Glossary"},
        "Reference": {f"api/{page}.md": room.title for page, room in ROOMS.items()},
        "More": MORE,
    }
    text = ""
    for caption, pages in parts.items():
        lines = "\n".join(f"{name} </{page.rpartition('.')[0]}>" for page, name in pages.items())
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"
    return text


def _title(notebook: Path) -> str:
    return nbformat.read(notebook, as_version=4).cells[0].source.partition("\n")[0].strip("# ")


def homes() -> dict[str, str]:
    """The module in which each public name lives, in the order of the package's stub."""
    stub = ast.parse(Path(vblora_lab.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def reference() -> dict[str, str]:
    """The Markdown of each page of the reference.

    Raises:
        ValueError: a public name lives in a module that belongs to no room.
    """
    rooms = {home: page for page, room in ROOMS.items() for home in room.homes}
    names: dict[str, list[str]] = {page: [] for page in ROOMS}
    for name, home in homes().items():
        if home not in rooms:
            raise ValueError(f"{name} lives in vblora_lab.{home}, which is in no room of ROOMS.")
        names[rooms[home]].append(name)
    texts = {}
    for page, room in ROOMS.items():
        entries = [_entry(name) for name in names[page]]
        entries += [_MODULE.format(module) for module in room.whole]
        body = "\n\n".join([".. py:currentmodule:: vblora_lab", *entries])
        texts[f"api/{page}.md"] = (
            f"# {room.title}\n\n{room.intro}\n\n```{{eval-rst}}\n{body}\n```\n"
        )
    return texts


# `set` is what matplotlib gives each class of its figures.
_MODULE = ".. automodule:: vblora_lab.{}\n   :members:\n   :exclude-members: set"


def _entry(name: str) -> str:
    value = getattr(vblora_lab, name)
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:"
    if inspect.isroutine(value):
        return f".. autofunction:: {name}"
    if not isinstance(value, Mapping):
        return f".. autodata:: {name}"
    keys = ", ".join(f"``{key}``" for key in value)
    return f".. autodata:: {name}\n\n   A mapping with the keys {keys}."


# --- all of it


def make(build: Path = BUILD, stored: bool = False) -> Path:
    """Make the site; returns the folder with its pages.

    Args:
        build: folder for everything; runs of earlier times in it are used again.
        stored: run nothing, show stored outputs.

    Raises:
        SystemExit: Sphinx warned, or a link leads nowhere.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # the course needs no network; this proves it
    source, html, runs, pages = (build / name for name in ("source", "html", "runs", "widgets"))
    course = [ROOT / page for page in COURSE]
    if not stored:
        runs.mkdir(parents=True, exist_ok=True)
        pages.mkdir(exist_ok=True)
        for i, path in enumerate(course):
            print(f"{path.name} ...", flush=True)
            course[i] = run(path, runs, pages)
    gather(source, course)
    shutil.rmtree(html, ignore_errors=True)
    options = ["-b", "html", "-W", "--keep-going", "-q", "-E", "-d", str(build / "doctrees")]
    if build_main([*options, "-c", str(ROOT / "docs"), str(source), str(html)]):
        sys.exit("The site was not made: see what Sphinx says above.")
    play.write(html)
    if not stored:
        shutil.copytree(pages, html / "widgets")
    if found := list(problems(html)):
        sys.exit("\n".join(found))
    return html


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stored", action="store_true", help="run nothing, show stored outputs")
    html = make(stored=parser.parse_args().stored)
    print(f"The front page is {os.path.relpath(html / 'index.html')}")


if __name__ == "__main__":
    main()
