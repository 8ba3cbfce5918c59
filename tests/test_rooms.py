"""The rooms of the package: imports point one way, and nothing heavy comes in by the back door.

Every import counts, those in functions and those for annotations alone too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vblora_lab

PACKAGE = Path(vblora_lab.__file__).parent
# The one list of rooms, from the ground up. A room may import those before it; those that share a
# line know nothing of each other.
ORDER = """
    errors
    admixture tables files
    speed
    tuner
    convert inspection
    planning
    data bases
    runs
    train
    serving plots
    widgets
    course
    app
    __init__
    cli
"""
FLOOR = {room: i for i, line in enumerate(ORDER.strip().splitlines()) for room in line.split()}
CORE = {room for room in FLOOR if FLOOR[room] <= FLOOR["planning"]}
OUTSIDE_THE_CORE = ("matplotlib", "ipywidgets", "anywidget", "IPython", "transformers.trainer")


def dotted(path: Path) -> str:
    """The name of a module below the package: a room's own for its __init__."""
    *rooms, last = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(rooms if rooms and last == "__init__" else [*rooms, last])


PATHS = [p for p in sorted(PACKAGE.rglob("*.py*")) if p.suffix in (".py", ".pyi")]
NAMES = {dotted(path) for path in PATHS}


def imports(path: Path) -> set[str]:
    """All that a file imports, by full name: modules, and names out of them as module.name."""
    package = ("vblora_lab", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def own(full: str) -> str | None:
    """The module of this package that an imported name is, or is from; None if it is another's."""
    package, _, name = full.partition(".")
    if package != "vblora_lab":
        return None
    return name if name in NAMES else name.rpartition(".")[0] or "__init__"


ARROWS: dict[str, set[str]] = {name: set() for name in NAMES}
for _path in PATHS:
    ARROWS[dotted(_path)] |= {target for full in imports(_path) if (target := own(full))}


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_has_its_place():
    assert {room(name) for name in NAMES} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_imports_point_one_way(name):
    for target in ARROWS[name]:
        if room(target) != room(name):
            assert FLOOR[room(target)] < FLOOR[room(name)], f"{name} imports {target}"


def test_there_is_no_circle():
    left = {name: {t for t in targets if t != name} for name, targets in ARROWS.items()}
    while left:
        free = {name for name, targets in left.items() if not targets & left.keys()}
        assert free, f"each of these imports another of them: {sorted(left)}"
        left = {name: targets for name, targets in left.items() if name not in free}


def test_the_core_imports_no_figures_no_widgets_and_no_trainer():
    for path in PATHS:
        if room(dotted(path)) in CORE:
            names = imports(path)
            heavy = {n for n in names for h in OUTSIDE_THE_CORE if f"{n}.".startswith(f"{h}.")}
            assert not heavy | (names & {"transformers.Trainer"}), (path, heavy)


def loaded_by(script: str) -> set[str]:
    """What a fresh process has in sys.modules at the end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_is_light_to_import():
    heavy = {"torch", "transformers", "peft", "matplotlib", "ipywidgets", "numpy"}
    assert not heavy & loaded_by("import vblora_lab")


def test_the_command_line_is_light_to_start():
    """Its help needs nothing that must be loaded first."""
    heavy = {"torch", "transformers", "peft", "matplotlib", "ipywidgets", "numpy", "pandas"}
    assert not heavy & loaded_by("import vblora_lab.cli")


@pytest.mark.slow
def test_the_core_loads_no_figures_no_widgets_and_no_trainer():
    loaded = loaded_by(
        "import vblora_lab.tuner.peft, vblora_lab.planning.presets, vblora_lab.planning.plan"
    )
    assert not set(OUTSIDE_THE_CORE) & loaded
    above = {name for name in FLOOR if FLOOR[name] > FLOOR["planning"]} - {"__init__"}
    assert not {f"vblora_lab.{name}" for name in above} & loaded
    assert "transformers.trainer" in loaded_by("import transformers.trainer")  # it would be seen


def test_a_recorded_run_is_read_without_torch():
    loaded = loaded_by("from vblora_lab.runs import Replay, Runs, Trace, TraceWriter, ProgressBar")
    assert not {"torch", "transformers", "peft", "matplotlib"} & loaded
