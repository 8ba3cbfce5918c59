"""Binder's files and the tool that runs copies of platforms: the parts that need no installing.

The whole is `make binder-check`, `make colab-check` and `make matrix`, which take minutes each.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import platforms
import pytest
from packaging.requirements import Requirement

ROOT = platforms.ROOT
BINDER = ROOT / "binder"
MIB = 1 << 20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Binder and its memory are Linux'")


def lines_of(file):
    text = (BINDER / file).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


# --- binder/


@on_linux
@pytest.mark.parametrize("file", ["postBuild", "start"])
def test_scripts_can_be_run_and_stop_at_the_first_error(file):
    path = BINDER / file
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert lines_of(file)[0] == "set -e"
    subprocess.run(["bash", "-n", path], check=True)


@on_linux
@pytest.mark.parametrize("cached", [True, False])
def test_a_session_starts_with_one_thread_and_offline_only_when_cached(tmp_path, cached):
    if cached:
        (tmp_path / ".cache/huggingface/hub/models--facebook--opt-125m/snapshots").mkdir(
            parents=True
        )
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    told = 'echo "$OMP_NUM_THREADS ${HF_HUB_OFFLINE:-online} $1"'
    command = [BINDER / "start", "bash", "-c", told, "name", "an argument"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"1 {'1' if cached else 'online'} an argument\n"


def test_its_python_is_one_that_the_lab_supports():
    (line,) = lines_of("runtime.txt")
    name, _, version = line.partition("-")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert name == "python"
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_torch_comes_from_an_index_for_cpus_in_the_tested_version():
    options = [line for line in lines_of("requirements.txt") if line.startswith("-")]
    (index,) = [line for line in options if line.startswith("--extra-index-url")]
    assert index.endswith("/cpu")
    assert "--constraint ../constraints.txt" in options  # from where the requirements lie
    names = {Requirement(line).name for line in lines_of("requirements.txt") if line not in options}
    assert names == {"torch", "ipykernel"}


def test_an_index_that_is_out_of_reach_is_left_out_of_the_copy(tmp_path):
    copy = tmp_path / "requirements.txt"
    copy.write_text("--extra-index-url http://127.0.0.1:9/cpu\ntorch\n")
    assert "out of reach" in platforms.use_reachable_index(copy)
    assert copy.read_text().split() == ["torch"]


# --- the tool


@on_linux
def test_memory_of_all_processes_is_counted_together(tmp_path):
    hold = "import time; kept = bytearray(b'x') * (60 << 20); time.sleep(1)"
    both = (
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {hold!r}]); "
        f"{hold}; child.wait()"
    )
    command = [sys.executable, "-c", both]
    run = platforms.run_within(
        command, memory=1024 * MIB, cores=1, cwd=tmp_path, env={**os.environ}
    )
    assert run.status == 0
    assert 120 * MIB < run.peak < 250 * MIB


@on_linux
def test_what_takes_more_memory_is_killed_with_all_that_it_started(tmp_path):
    hold = "import time; kept = bytearray(b'x') * (200 << 20); time.sleep(60)"
    command = ["bash", "-c", f'"{sys.executable}" -c "{hold}"; echo survived']
    run = platforms.run_within(command, memory=100 * MIB, cores=1, cwd=tmp_path, env={**os.environ})
    assert run.status != 0
    assert run.peak > 100 * MIB
    assert "killed" in run.output and "survived" not in run.output


@on_linux
def test_a_command_gets_no_more_cores_than_asked_for(tmp_path):
    code = "import os; print(len(os.sched_getaffinity(0)))"
    run = platforms.run_within(
        [sys.executable, "-c", code], memory=1024 * MIB, cores=1, cwd=tmp_path, env={**os.environ}
    )
    assert run.output == "1\n"


def test_nothing_of_this_checkout_leaks_into_the_copies(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("VBLORA_LAB_DRIVER", "thread")
    assert not {"PYTHONPATH", "VBLORA_LAB_DRIVER"} & set(platforms.outside_environment())
    copy = platforms.checkout(tmp_path / "copy")
    assert (copy / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()
    assert not (copy / ".git").exists() and not list(copy.rglob("__pycache__"))


def test_the_oldest_dependencies_are_those_that_pyproject_allows():
    settings = tomllib.loads((ROOT / "tools" / "platforms.toml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {need.name: need.specifier for need in map(Requirement, project["dependencies"])}
    for line in settings["matrix"]["oldest"]["installed"]:
        oldest = Requirement(line)
        if oldest.name in ranges:
            (lower,) = [s.version for s in ranges[oldest.name] if s.operator == ">="]
            assert oldest.specifier.contains(lower), f"{line}, but pyproject says {lower}"


def test_the_matrix_has_every_supported_python():
    settings = tomllib.loads((ROOT / "tools" / "platforms.toml").read_text("utf-8"))["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ends = [{**settings, **end} for end in settings.values() if isinstance(end, dict)]
    supported = {line.split(" :: ")[-1] for line in project["classifiers"] if ":: 3." in line}
    assert {end["python"] for end in ends} == supported
    assert all(end["title"] and end["installed"] for end in ends)


@on_linux
def test_an_interpreter_counts_only_if_it_starts(monkeypatch, tmp_path):
    for version, script in (("4.1", "exit 127"), ("4.2", "echo Python 4.2")):
        command = tmp_path / f"python{version}"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert platforms.find_python("4.1") is None
    assert platforms.find_python("4.2") == str(tmp_path / "python4.2")
    assert platforms.find_python("4.3") is None
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert platforms.find_python(here) == sys.executable


def test_an_end_whose_python_is_not_here_is_left_out_aloud(monkeypatch, capsys):
    monkeypatch.setattr(platforms, "find_python", lambda version: None)
    monkeypatch.setattr(platforms, "matrix", lambda *args: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["platforms.py", "matrix"])
    platforms.main()
    assert "python-3.13: there is no python3.13" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["platforms.py", "matrix", "newest"])
    with pytest.raises(SystemExit, match=r"newest: there is no python3\.11"):
        platforms.main()


def test_a_test_that_fails_hides_neither_other_parts_nor_other_ends(monkeypatch, tmp_path, capsys):
    """Real pytests of this environment; only the installing is left out."""
    (tmp_path / "repo" / "tests").mkdir(parents=True)
    (tmp_path / "repo" / "tests" / "test_bad.py").write_text("def test_it(): assert 'bad' == 3")
    (tmp_path / "repo" / "tests" / "test_good.py").write_text("def test_it(): pass")

    def copy(folder):
        shutil.copytree(tmp_path / "repo", folder)
        (folder / "vblora_lab").mkdir()
        return folder

    monkeypatch.setattr(platforms, "checkout", copy)
    monkeypatch.setattr(platforms, "make_environment", lambda *args: Path(sys.executable))
    monkeypatch.setattr(platforms, "say", lambda *args, **options: "Python 3.99")
    monkeypatch.setattr(platforms, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    bad, good = "tests/test_bad.py -p no:cacheprovider", "tests/test_good.py -p no:cacheprovider"
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    common = {"python": here, "installed": [], "tests_need": [], "shown": [], "without": []}
    ends = {"one": {"title": "One", "tests": [bad, good]}, "two": {"title": "Two", "tests": [good]}}
    with pytest.raises(SystemExit, match=f"^One: pytest {bad} failed$"):
        platforms.all_of(["one", "two"], tmp_path / "work", common | ends, asked=False)
    assert "assert 'bad' == 3" in capsys.readouterr().out
    assert [page.name for page in (tmp_path / "results").iterdir()] == ["matrix-two.md"]
    assert f"| `{good}` | 1 passed in" in (tmp_path / "results" / "matrix-two.md").read_text()


def test_every_notebook_that_a_platform_names_can_be_found(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01-x.ipynb").touch()
    assert [path.name for path in platforms.chosen(tmp_path, ["01"])] == ["01-x.ipynb"]
    with pytest.raises(AssertionError, match="0 notebooks begin with 04-"):
        platforms.chosen(tmp_path, ["01", "04"])
    settings = tomllib.loads((ROOT / "tools" / "platforms.toml").read_text("utf-8"))
    for platform in ("binder", "colab"):
        numbers = settings[platform]["notebooks"]
        assert len(platforms.chosen(ROOT, numbers)) == len(numbers)
