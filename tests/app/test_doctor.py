"""The doctor: what it finds is compared with the machine, and each illness is brought about."""

import http.server
import io
import json
import subprocess
import sys
import threading
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest
import torch
from huggingface_hub import constants

from vblora_lab import doctor
from vblora_lab.app import checks
from vblora_lab.app.diagnosis import Check, Diagnosis
from vblora_lab.cli import main


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("VBLORA_LAB_DRIVER", raising=False)


def without(monkeypatch, package, version=None):
    """As if this package were not installed, or in this version."""
    real = metadata.version

    def lookup(name):
        if name != package:
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", lookup)


# --- a machine as it is


@pytest.mark.slow
def test_the_command_tells_scripts_and_people_the_same():
    command = [sys.executable, "-m", "vblora_lab.cli", "doctor"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    checks = {check["name"]: check for check in told["checks"]}
    assert told["can_run"]
    assert checks["ipykernel"]["found"] == metadata.version("ipykernel")
    assert checks["torch"]["found"].startswith(torch.__version__)
    assert checks["front end"]["found"].startswith("script;")
    assert all(check["advice"] for check in told["checks"] if check["status"] != "ok")
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0
    assert all(f" {name} " in shown.stdout for name in checks)
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_a_pipe_that_has_few_signs_gets_plain_ones(monkeypatch):
    """As on Windows, where only the console can show all signs."""
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert main(["doctor"]) == 0
    pipe.flush()
    told = pipe.buffer.getvalue().decode("cp1252")
    assert "+ Python " in told and "-> mini-opt" in told and "?" not in told


def test_this_environment_is_whole():
    found = doctor()
    assert found.can_run
    for name in ("Python", "packages", "torch", "shipped model", "VB-LoRA in PEFT", "anywidget"):
        assert found[name].status == "ok", found[name]
    with pytest.raises(KeyError, match="there are Python, packages"):
        found["pyton"]


def test_memory_is_what_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "CGROUP", tmp_path)  # no limit
    total = psutil.virtual_memory().total / (1 << 30)
    assert f"of {total:.1f} GiB" in checks.check_memory().found


# --- illnesses


def test_a_missing_package_and_an_old_one(monkeypatch, capsys):
    without(monkeypatch, "peft")
    check = checks.check_packages()
    assert check.status == "error" and "peft is missing" in check.found
    assert check.advice.startswith('pip install "peft')
    assert main(["doctor"]) == 1
    assert "can't run" in capsys.readouterr().out
    monkeypatch.undo()
    without(monkeypatch, "transformers", "4.57.0")
    assert "transformers 4.57.0 is not" in checks.check_packages().found


def test_a_peft_that_does_not_load(monkeypatch):
    def broken(name):
        raise ImportError("cannot import name 'BaseTuner'\nand more")

    monkeypatch.setattr(checks.importlib, "import_module", broken)
    check = checks.check_peft()
    assert check.status == "error"
    assert check.found == "ImportError: cannot import name 'BaseTuner'"


@pytest.mark.parametrize("version, status", [("7.0.1", "warning"), ("6.17.1", "ok")])
def test_the_thread_fault_of_ipykernel(monkeypatch, version, status):
    without(monkeypatch, "ipykernel", version)
    check = checks.check_ipykernel()
    assert check.status == status
    assert ("LookupError" in check.found) == ("7.1" in check.advice) == (status == "warning")


def test_no_ipykernel(monkeypatch):
    without(monkeypatch, "ipykernel")
    assert checks.check_ipykernel().status == "warning"


@pytest.mark.parametrize(
    "package, extension, kernel, served, status",
    [
        ("ipywidgets", "@jupyter-widgets/jupyterlab-manager", "8.1.9", "5.0.16", "ok"),
        ("ipywidgets", "@jupyter-widgets/jupyterlab-manager", "7.7.1", "5.0.16", "warning"),
        ("ipywidgets", "@jupyter-widgets/jupyterlab-manager", "8.1.9", "3.1.0", "warning"),
        ("anywidget", "anywidget", "0.9.21", "0.9.13", "ok"),
        ("anywidget", "anywidget", "0.11.0", "0.9.13", "warning"),
        ("anywidget", "anywidget", None, "0.9.13", "error"),
    ],
)
def test_halves_of_widgets(monkeypatch, tmp_path, package, extension, kernel, served, status):
    folder = tmp_path / "labextensions" / extension
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": served}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    without(monkeypatch, package, kernel)
    check = checks.check_widget_parts(package, extension)
    assert check.status == status
    assert (package in check.advice) == (status != "ok")
    assert kernel is None or (kernel in check.found and served in check.found)


def test_colab_brings_its_own_halves(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    without(monkeypatch, "ipywidgets", "7.7.1")
    check = checks.check_widget_parts("ipywidgets", "@jupyter-widgets/jupyterlab-manager")
    assert check.status == "ok" and "its own" in check.found
    assert "foreground" in checks.check_front_end().found


def test_a_container_with_little_memory_and_one_core(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    check = checks.check_memory()
    assert check.status == "warning" and "of 1.0 GiB" in check.found
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        check = checks.check_device()
    finally:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        pytest.skip("with a GPU, the cores don't matter")
    assert check.status == "warning" and "OMP_NUM_THREADS=1" in check.advice
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert checks._container_limit() is None
    assert checks._cores() >= 1


def test_a_full_disk(monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert checks.check_disk().status == "warning"


def test_a_wrong_driver_in_the_environment(monkeypatch):
    monkeypatch.setenv("VBLORA_LAB_DRIVER", "fast")
    found = doctor()
    assert not found.can_run and "'fast'" in found["front end"].found


# --- the hub


def test_a_hub_that_answers(monkeypatch):
    class Answering(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert checks.check_hub(checks.HubProbe(5.0)).status == "ok"
        server.shutdown()


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait(60)
        raise OSError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", hang)
    check = checks.check_hub(checks.HubProbe(0.2))
    assert not release.is_set()
    release.set()
    assert check.status == "warning" and "no answer within 0.2 seconds" in check.found


def test_offline_by_choice():
    check = checks.check_hub(checks.HubProbe(5.0))
    assert "HF_HUB_OFFLINE" in check.found


# --- forms


def test_the_page_shows_every_check_and_runs_no_markup():
    found = Diagnosis(
        (Check("one", "ok", "a < b"), Check("two", "error", "<script>", "Remove <script>."))
    )
    page = found._repr_html_()
    assert "<script>" not in page and "a &lt; b" in page and "Remove &lt;script&gt;" in page
    assert page.count("<tr ") == 2
    assert 'title="error"' in page
    assert "can&#x27;t run here" in page and found.verdict.startswith("The lab can")
