"""The workflow files: whole as YAML, and in step with the Makefile and the notebooks."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import platforms
import pytest
import repository
import yaml

FOLDER = platforms.ROOT / ".github" / "workflows"
FLOWS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in FOLDER.glob("*.yml")}
# YAML reads the key `on` as the truth value.
TRIGGERS = {name: flow[True] for name, flow in FLOWS.items()}


def commands(flow):
    return [step["run"] for step in steps_of(flow) if "run" in step]


def steps_of(flow):
    return [step for job in flow["jobs"].values() for step in job["steps"]]


def test_there_is_one_for_each_purpose():
    assert set(FLOWS) == {"test", "notebooks", "site", "binder", "weekly"}
    assert {"pull_request", "push"} <= set(TRIGGERS["test"]) & set(TRIGGERS["notebooks"])
    assert "schedule" in TRIGGERS["weekly"]


def test_tests_run_on_three_systems_and_every_supported_python():
    matrix = FLOWS["test"]["jobs"]["tests"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    project = tomllib.loads((platforms.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    supported = {line.split(" :: ")[-1] for line in project["classifiers"] if ":: 3." in line}
    included = {row["python"] for row in matrix["include"]}
    assert set(matrix["python"]) | included == supported
    assert min(supported) == project["requires-python"].removeprefix(">=")


def test_no_browser_test_is_skipped_unseen():
    """A machine of GitHub's that has no Chromium gets one, and its absence is a failure."""
    for name, job in (("test", "tests"), ("weekly", "pre-releases")):
        job = FLOWS[name]["jobs"][job]
        assert job["env"]["VBLORA_LAB_REQUIRE_BROWSER"] == "1"
        told = [step.get("run", "") for step in job["steps"]]
        (install,) = [i for i, text in enumerate(told) if "playwright install" in text]
        (tests,) = [i for i, text in enumerate(told) if "-m pytest" in text]
        assert install < tests


def test_the_targets_that_they_make_are_there():
    makefile = (platforms.ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = {word for flow in FLOWS.values() for text in commands(flow)
            for word in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}  # fmt: skip
    used |= set(FLOWS["weekly"]["jobs"]["platforms"]["strategy"]["matrix"]["target"])
    assert {"check", "setup", "binder-check"} <= used <= targets


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("jq"), reason="run by GitHub on Linux, with jq"
)
def test_there_is_a_job_for_every_notebook(tmp_path):
    (command,) = commands({"jobs": {"list": FLOWS["notebooks"]["jobs"]["list"]}})
    output = tmp_path / "output"
    env = {"GITHUB_OUTPUT": str(output), "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-e", "-c", command], cwd=platforms.ROOT, env=env, check=True)
    name, _, value = output.read_text().partition("=")
    assert name == "notebooks"
    there = {
        str(path.relative_to(platforms.ROOT)) for path in platforms.ROOT.glob("notebooks/*.ipynb")
    }
    assert set(json.loads(value)) == there


def test_the_one_that_may_write_runs_nothing_of_the_pull_request():
    flow = FLOWS["binder"]
    assert flow["permissions"] == {"pull-requests": "write"}
    (step,) = steps_of(flow)
    assert "checkout" not in step["uses"] and "run" not in step
    assert f"urlpath=lab/tree/{repository.FIRST_NOTEBOOK}`" in step["with"]["script"]


def test_the_site_is_published_from_main_alone_and_by_a_job_that_runs_nothing():
    make, publish = (FLOWS["site"]["jobs"][name] for name in ("make", "publish"))
    assert "make site" in commands({"jobs": {"make": make}})
    assert FLOWS["site"]["permissions"] == {"contents": "read"} and "permissions" not in make
    assert "refs/heads/main" in publish["if"] and "push" in publish["if"]
    assert not commands({"jobs": {"publish": publish}})


def test_the_weekly_run_takes_pre_releases():
    assert any("pip install --pre --upgrade" in text for text in commands(FLOWS["weekly"]))


def test_no_job_but_the_one_that_writes_keeps_a_token():
    for name in set(FLOWS) - {"binder"}:
        assert FLOWS[name]["permissions"] == {"contents": "read"}
        for step in steps_of(FLOWS[name]):
            if "checkout" in step.get("uses", ""):
                assert step["with"] == {"persist-credentials": False}


def test_no_command_holds_what_others_may_write():
    """Titles and branch names in a command line would be run; the environment is the way."""
    for flow in FLOWS.values():
        for text in commands(flow):
            assert "${{" not in text


def test_hooks_use_the_tested_ruff_and_clone_nothing():
    config = yaml.safe_load((platforms.ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    pinned = (platforms.ROOT / "constraints.txt").read_text("utf-8").splitlines()
    for name in ("ruff-check", "ruff-format"):
        (need,) = hooks[name]["additional_dependencies"]
        assert need in pinned
