"""The repository's name, in one place: `[project.urls]` in pyproject.toml.

    python tools/repository.py                   # print the name and every address made from it
    python tools/repository.py check             # exit 1 if a file names another repository
    python tools/repository.py set OWNER/NAME    # change it everywhere

Badges, install cells and links in the tracked text files follow from that one line; `set` rewrites
them and `check` finds those that differ.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = "https://github.com/"
BRANCH = "main"
FIRST_NOTEBOOK = "notebooks/00-start-here.ipynb"
COLAB_PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"
BINDER_PICTURE = "https://mybinder.org/badge_logo.svg"

_NAME = r"([A-Za-z0-9_.-]+)/([A-Za-z0-9_.-]+?)"
_END = r"(?=\.git\b|[^A-Za-z0-9_.-]|\.?$|\.\s)"
# Addresses of these kinds can only mean this repository.
_OURS = re.compile(rf"(?:colab\.research\.google\.com/github/|mybinder\.org/v2/gh/){_NAME}{_END}")
# Others may mean anybody's; they mean this one if they end in its name.
_HOSTED = re.compile(rf"(?:raw\.githubusercontent|github)\.com[/:]{_NAME}{_END}", re.MULTILINE)
# So do sites: GitHub serves that of OWNER/NAME from a host named after the owner, in lower case.
_SITE = re.compile(rf"https://([a-z0-9-]+)\.github\.io/([A-Za-z0-9_.-]+?){_END}", re.MULTILINE)


def name(root: Path = ROOT) -> str:
    """OWNER/NAME as pyproject.toml has it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix(HOST)


def addresses(repository: str) -> dict[str, str]:
    """What is made from the name, by what it is for."""
    url = f"{HOST}{repository}"
    owner, _, last = repository.partition("/")
    binder = f"https://mybinder.org/v2/gh/{repository}/{BRANCH}?urlpath=lab/tree/{FIRST_NOTEBOOK}"
    return {
        "Homepage": url,
        "Documentation": f"https://{owner.lower()}.github.io/{last}/",
        "Repository": url,
        "Issues": f"{url}/issues",
        "Changelog": f"{url}/blob/{BRANCH}/CHANGELOG.md",
        "install": f"vblora-lab @ git+{url}",
        "binder": binder,
        "binder badge": f"[![Open in Binder]({BINDER_PICTURE})]({binder})",
    }


def colab_badge(repository: str, notebook: str) -> str:
    """The badge of one notebook, such as "01-vblora-live.ipynb"."""
    where = f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/notebooks"
    return f"[![Open in Colab]({COLAB_PICTURE})]({where}/{notebook})"


def binder_badge(repository: str, notebook: str) -> str:
    """The badge of one notebook, such as "01-vblora-live.ipynb"."""
    first = addresses(repository)["binder badge"]
    return first.replace(FIRST_NOTEBOOK, f"notebooks/{notebook}")


def others(root: Path = ROOT) -> list[str]:
    """Every place in the tracked files that names another repository as this one."""
    wanted = name(root)
    owner, _, last = wanted.partition("/")
    found = []
    for path, text in _texts(root):
        matches = [match.groups() for match in _OURS.finditer(text)]
        matches += [match.groups() for match in _HOSTED.finditer(text) if match[2] == last]
        found += [f"{path}: {'/'.join(m)}" for m in matches if "/".join(m) != wanted]
        sites = [match for match in _SITE.finditer(text) if match[2] == last]
        found += [f"{path}: the site of {m[1]}" for m in sites if m[1] != owner.lower()]
    return found


def rename(new: str, root: Path = ROOT) -> list[Path]:
    """Write the new name wherever the old one stands in an address; returns the changed files."""
    if not re.fullmatch(_NAME, new):
        raise ValueError(f"{new!r} is not OWNER/NAME, such as someone/vblora_lab")
    current = name(root)
    old = re.escape(current)
    old_site, new_site = (addresses(each)["Documentation"] for each in (current, new))
    hosts = r"(github\.com[/:]|githubusercontent\.com/|google\.com/github/|mybinder\.org/v2/gh/)"
    changed = []
    for path, text in list(_texts(root)):
        renamed = re.sub(rf"{hosts}{old}(?![\w-])", rf"\g<1>{new}", text)
        renamed = renamed.replace(old_site, new_site)
        if renamed != text:
            (root / path).write_text(renamed, encoding="utf-8")
            changed.append(path)
    return changed


def _texts(root: Path) -> Iterator[tuple[Path, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    for file in listed.stdout.decode().split("\0"):
        path = root / file
        if not file or not path.is_file():
            continue
        try:
            yield Path(file), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("check", help="exit 1 if a file names another repository")
    change = commands.add_parser("set", help="change the name everywhere")
    change.add_argument("name", metavar="OWNER/NAME")
    args = parser.parse_args()
    if args.command == "set":
        try:
            changed = rename(args.name)
        except ValueError as error:
            parser.error(str(error))
        print("\n".join(map(str, changed)) or "nothing to change")
    elif args.command == "check":
        wrong = others()
        print("\n".join(wrong) or f"every address names {name()}")
        return 1 if wrong else 0
    else:
        print(name())
        for purpose, address in addresses(name()).items():
            print(f"{purpose:<13} {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
