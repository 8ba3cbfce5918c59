"""Run the lab on copies of platforms that this machine is not; the results go to docs/platforms/.

    python tools/platforms.py binder             # by Binder's own steps, in 2 GiB and on one core
    python tools/platforms.py colab              # beside the versions that Colab has
    python tools/platforms.py matrix [END ...]   # the tests on the oldest and newest dependencies,
                                                 # and on each Python that is here

What is installed for each, on which Python, is in tools/platforms.toml. All environments are made
anew, from tracked files alone, in a temporary folder or in one that `--work` names. This takes
minutes: it is not part of `make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import old_widgets
from platform_steps import (
    MIB,
    ROOT,
    check,
    checkout,
    chosen,
    convert,
    find_python,
    make_environment,
    outside_environment,
    run_within,
    say,
    size,
    use_reachable_index,
    version_of,
    version_of_python,
)

RESULTS = ROOT / "docs" / "platforms"

# Runs in an environment that has repo2docker: what it finds in the repository that it stands in.
PLAN = """
import json, re
from pathlib import Path
import repo2docker
from repo2docker.buildpacks import PythonBuildPack

pack = PythonBuildPack("a base image")
assert pack.detect(), "repo2docker would not build this as a Python repository"
version = pack.python_version
lock = f"buildpacks/conda/environment.py-{version}-linux-64.lock"
text = (Path(repo2docker.__file__).parent / lock).read_text()
found = re.findall(r"/([^/]+)-([^-/]+)-[^-/]+[.]conda", text)
print(json.dumps({
    "python": version,
    "locked": {name: number for name, number in found},
    "scripts": [text for _, text in pack.get_preassemble_scripts() + pack.get_assemble_scripts()],
    "post_build": pack.get_post_build_scripts(),
    "start": pack.get_start_script(),
}))
"""

# What packages look for on Colab, whose kernels have loaded it before the first cell.
COLAB_OUTPUT = """
from types import SimpleNamespace
_widgets = SimpleNamespace(_installed_url="")
def enable_custom_widget_manager(*args, **kwargs): pass
"""
COLAB_STARTUP = "import google.colab.output\n"

# Runs after the last cell of a notebook.
COLAB_PROOF = """
from vblora_lab.runs.frontend import detect
assert (detect().name, detect().driver) == ("colab", "foreground"), detect()
panels = [value for value in globals().values() if type(value).__name__ == "LiveTraining"]
assert all(panel.driver == "foreground" for panel in panels)
"""


def binder(work: Path, settings: dict) -> list[str]:
    """Build by repo2docker's steps, and run the notebooks as a session would; returns a report."""
    repo, home = checkout(work / "repo"), work / "home"
    home.mkdir()
    tools = make_environment(work / "tools", ["jupyter-repo2docker"])
    plan = json.loads(say([tools, "-c", PLAN], cwd=repo))
    locked = {name: plan["locked"][name] for name in settings["locked"] if name in plan["locked"]}
    python = make_environment(work / "env", [f"{name}=={v}" for name, v in locked.items()])
    before = size(work / "env")
    note = use_reachable_index(repo / "binder" / "requirements.txt")

    prefix = str(work / "env")
    env = outside_environment()
    env |= {"HOME": str(home), "REPO_DIR": str(repo), "NB_USER": "jovyan"}
    env |= {"KERNEL_PYTHON_PREFIX": prefix, "NB_PYTHON_PREFIX": prefix}
    env["PATH"] = f"{prefix}/bin{os.pathsep}{env['PATH']}"
    for script in plan["scripts"]:
        say(["bash", "-c", script], cwd=repo, env=env)
    for script in plan["post_build"]:
        print(say([repo / script], cwd=repo, env=env))
    added = size(work / "env") - before + size(home) + size(repo)

    start = plan["start"].replace("${REPO_DIR}", str(repo))
    doctor = say([start, python, "-m", "vblora_lab.cli", "doctor"], cwd=repo, env=env)
    print(doctor)
    lower = [f"{name}=={locked[name]}" for name in ("ipykernel", "ipywidgets")]
    rows = []
    for installs in ([], lower):
        if installs:
            say([python, "-m", "pip", "install", "--quiet", *installs], cwd=repo, env=env)
        versions = ", ".join(f"{n} {version_of(python, n)}" for n in ("ipykernel", "ipywidgets"))
        for notebook in chosen(repo, settings["notebooks"]):
            result = run_within(
                [start, python, *convert(notebook, work / "out")],
                memory=int(settings["memory_gib"] * 1024 * MIB),
                cores=settings["cores"],
                cwd=repo,
                env=env,
            )
            check(result, notebook.name)
            rows.append((notebook.name, versions, f"{result.peak / MIB:.0f}", result.seconds))
    return [
        "# Binder",
        "",
        f"By repo2docker {version_of(tools, 'jupyter-repo2docker')}'s own steps for Python "
        f"{plan['python']}, without Docker (here: Python {version_of_python(python)}), within "
        f"{settings['memory_gib']} GiB on {settings['cores']} core. {note}",
        "",
        f"The image grows by {added / MIB:,.0f} MiB over Binder's own: torch, the lab and its "
        "dependencies, and what the caches hold.",
        "",
        "| notebook | versions | peak memory, MiB | seconds |",
        "|---|---|---:|---:|",
        *(f"| {n} | {v} | {peak} | {seconds:.0f} |" for n, v, peak, seconds in rows),
        "",
        "Peak memory is the proportional set size of Jupyter's nbconvert and the kernel together.",
    ]


def colab(work: Path, settings: dict) -> list[str]:
    """Run notebooks beside Colab's versions; their first cell installs the lab."""
    repo = checkout(work / "repo")
    interpreter = next(filter(None, map(find_python, settings["pythons"])), sys.executable)
    python = make_environment(work / "env", settings["installed"], interpreter)
    names = [re.split(r"[=<>]", line)[0] for line in settings["installed"]]
    before = {name: version_of(python, name) for name in names}
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    package = Path(say([python, "-c", code], cwd=work).strip(), "google", "colab")
    startup = work / "ipython" / "profile_default" / "startup"
    for folder in (package, startup):
        folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "output.py").write_text(COLAB_OUTPUT)
    (startup / "00-colab.py").write_text(COLAB_STARTUP)
    env = outside_environment() | {"IPYTHONDIR": str(work / "ipython"), "HOME": str(work)}
    env["PATH"] = f"{work / 'env' / 'bin'}{os.pathsep}{env['PATH']}"
    rows = []
    for notebook in chosen(repo, settings["notebooks"]):
        content = json.loads(notebook.read_text(encoding="utf-8"))
        install = next(cell for cell in content["cells"] if cell.get("id") == "install")
        # The lab that is installed is this one, not the one on the web.
        text, count = re.subn(r"git\+https://[^\"]+", repo.as_uri(), "".join(install["source"]))
        assert count == 1, f"{notebook.name} installs nothing"
        install["source"] = text
        proof = {"cell_type": "code", "id": "proof", "metadata": {}, "outputs": []}
        content["cells"].append({**proof, "execution_count": None, "source": COLAB_PROOF})
        notebook.write_text(json.dumps(content), encoding="utf-8")
        result = run_within(
            [python, *convert(notebook, work / "out")],
            memory=12 * 1024 * MIB,  # what a Colab machine has
            cores=2,
            cwd=work,
            env=env,
        )
        check(result, notebook.name)
        rows.append((notebook.name, f"{result.peak / MIB:.0f}", f"{result.seconds:.0f}"))
    say([python, "-m", "pip", "install", "--quiet", settings["shown_in"]], cwd=work)
    (work / "widgets").mkdir()
    home = {"HOME": str(work / "widgets"), "IPYTHONDIR": str(work / "widgets" / "ipython")}
    seen = old_widgets.see(python, work / "widgets", env | home)
    after = {name: version_of(python, name) for name in names}
    kept = {"torch", "numpy", "ipykernel", "ipython", "ipywidgets", "anywidget"}
    changed = {name for name in names if before[name] != after[name]}
    assert not changed & kept, f"the first cell replaced {changed & kept}"
    return [
        "# Colab",
        "",
        f"Not Colab itself, but its versions on Python {version_of_python(python)}: "
        + ", ".join(f"{name} {before[name]}" for name in names)
        + ". The first notebook's first cell installed the lab; what it replaced: "
        + (", ".join(f"{n} {before[n]} by {after[n]}" for n in sorted(changed)) or "nothing")
        + ". Training ran in the foreground.",
        "",
        "| notebook | peak memory, MiB | seconds |",
        "|---|---:|---:|",
        *(f"| {name} | {peak} | {seconds} |" for name, peak, seconds in rows),
        "",
        f"Widgets in a browser, with ipywidgets {after['ipywidgets']} in {settings['shown_in']}:",
        "",
        *(f"- {line}" for line in seen),
    ]


def matrix(work: Path, settings: dict) -> list[str]:
    """Run the tests with one end of the supported dependencies."""
    repo = checkout(work / "repo")
    needed = [*settings["installed"], *settings["tests_need"]]
    python = make_environment(work / "env", needed, find_python(settings["python"]))
    command = [python, "-m", "pip", "install", "--quiet", ".", *settings["installed"]]
    say(command, cwd=repo)
    shutil.rmtree(repo / "vblora_lab")  # the installed package is tested
    versions = {name: version_of(python, name) for name in settings["shown"]}
    rows, failed = [], []
    for part in settings["tests"]:  # all of them, whatever fails
        passed, summary = run_tests(python, part, settings["without"], repo)
        rows.append((part, summary))
        failed += [] if passed else [part]
    if failed:
        sys.exit("\n".join(f"{settings['title']}: pytest {part} failed" for part in failed))
    return [
        f"# {settings['title']}",
        "",
        f"Python {version_of_python(python)}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        "| `pytest` | result |",
        "|---|---|",
        *(f"| `{part}` | {summary} |" for part, summary in rows),
        *(["", f"Left out: {', '.join(settings['without'])}."] if settings["without"] else []),
    ]


def run_tests(python: Path, part: str, without: Sequence[str], repo: Path) -> tuple[bool, str]:
    """Run pytest with the arguments in `part`; whether all pass, and its last line.

    What fails is printed, with the end of what pytest has to say about it.
    """
    command = [python, "-m", "pytest", "-q", "-rfE", *part.split()]
    if without:
        command += ["-k", f"not ({' or '.join(without)})"]
    done = subprocess.run(command, cwd=repo, text=True, capture_output=True)
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-4000:], flush=True)
    return done.returncode == 0, (done.stdout.strip().splitlines() or [""])[-1]


def main() -> None:
    settings = tomllib.loads((ROOT / "tools" / "platforms.toml").read_text(encoding="utf-8"))
    ends = [name for name, value in settings["matrix"].items() if isinstance(value, dict)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("platform", choices=("binder", "colab", "matrix"))
    parser.add_argument("ends", nargs="*", metavar="END", help=f"of the matrix: {', '.join(ends)}")
    parser.add_argument("--work", type=Path, help="a new folder to build in, which is kept")
    args = parser.parse_args()
    if set(args.ends) - set(ends):
        parser.error(f"the matrix has the ends {', '.join(ends)}")
    with tempfile.TemporaryDirectory(prefix="vblora-lab-") as temporary:
        work = args.work or Path(temporary)
        if args.platform == "matrix":
            all_of(args.ends or ends, work, settings["matrix"], asked=bool(args.ends))
        else:
            make = {"binder": binder, "colab": colab}[args.platform]
            write(args.platform, make(work, settings[args.platform]))


def all_of(ends: Sequence[str], work: Path, settings: dict, *, asked: bool) -> None:
    """Run each end of the matrix, whatever the others do; exits if one failed.

    asked: the ends were named, so that one whose Python isn't here is no end to leave out.
    """
    common = {k: v for k, v in settings.items() if not isinstance(v, dict)}
    failures = []
    for end in ends:
        how = common | settings[end]
        if find_python(how["python"]) is None:
            missing = f"{end}: there is no python{how['python']} on the PATH"
            if asked:
                sys.exit(missing)
            print("left out,", missing)
            continue
        try:
            write(f"matrix-{end}", matrix(work / end, how))
        except SystemExit as failure:
            failures.append(str(failure))
    if failures:
        sys.exit("\n".join(failures))


def write(name: str, lines: list[str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
