"""The workflow files: whole as YAML, and in step with the Makefile and the notebooks."""

import json
import re
import shutil
import subprocess

import platforms
import pytest
import yaml

FOLDER = platforms.ROOT / ".github" / "workflows"
FLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yml")}
# YAML reads the key `on` as the truth value.
TRIGGERS = {name: flow[True] for name, flow in FLOWS.items()}


def commands(flow):
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def test_there_is_one_for_each_purpose():
    assert set(FLOWS) == {"test", "notebooks", "site", "binder", "weekly"}
    assert {"pull_request", "push"} <= set(TRIGGERS["test"]) & set(TRIGGERS["notebooks"])
    assert "schedule" in TRIGGERS["weekly"]


def test_tests_run_on_three_systems_and_the_ends_of_the_supported_pythons():
    matrix = FLOWS["test"]["jobs"]["tests"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert {"3.11", "3.13"} <= set(matrix["python"])


def test_the_targets_that_they_make_are_there():
    makefile = (platforms.ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = {word for flow in FLOWS.values() for text in commands(flow)
            for word in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}  # fmt: skip
    used |= set(FLOWS["weekly"]["jobs"]["platforms"]["strategy"]["matrix"]["target"])
    assert {"check", "setup", "binder-check"} <= used <= targets


@pytest.mark.skipif(not shutil.which("jq"), reason="the machines of GitHub have jq")
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
    uses = [step["uses"] for job in flow["jobs"].values() for step in job["steps"]]
    assert not any("checkout" in action for action in uses) and not commands(flow)


def test_the_site_is_published_from_main_alone_and_by_a_job_that_runs_nothing():
    make, publish = (FLOWS["site"]["jobs"][name] for name in ("make", "publish"))
    assert "make site" in commands({"jobs": {"make": make}})
    assert FLOWS["site"]["permissions"] == {"contents": "read"} and "permissions" not in make
    assert "refs/heads/main" in publish["if"] and "push" in publish["if"]
    assert not commands({"jobs": {"publish": publish}})


def test_the_weekly_run_takes_pre_releases():
    assert any("pip install --pre --upgrade" in text for text in commands(FLOWS["weekly"]))


def test_no_command_holds_what_others_may_write():
    """Titles and branch names in a command line would be run; the environment is the way."""
    for flow in FLOWS.values():
        for text in commands(flow):
            assert "${{" not in text
