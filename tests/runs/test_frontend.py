"""Front ends: real kernels and processes where possible, their marks elsewhere."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import nbformat
import pytest

from vblora_lab.errors import ConfigError, VBLoRAError
from vblora_lab.runs import frontend
from vblora_lab.runs.frontend import detect

PRINT = "from vblora_lab.runs.frontend import detect\nprint(detect().name, detect().driver)"


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch):
    for name in ("VBLORA_LAB_DRIVER", "KAGGLE_KERNEL_RUN_TYPE", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("VSCODE_PID", "VSCODE_CWD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kernel(monkeypatch):
    """IPython's shell as in a kernel that no known program started; returns its namespace."""
    shell = SimpleNamespace(kernel=object(), user_ns={})
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(frontend, "_starter", lambda: None)
    return shell.user_ns


def started_by(monkeypatch, *command_lines):
    """As if these were the command lines of this process's parents, nearest first."""
    import psutil

    parents = [SimpleNamespace(cmdline=lambda words=words: words) for words in command_lines]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    return frontend._starter()


# --- real processes


def test_a_script_has_no_front_end_and_loads_nothing():
    code = PRINT + "\nimport sys; print({'torch', 'IPython', 'ipykernel'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["script foreground", "set()"], done.stderr


def test_ipython_in_a_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--quick"],
        input=PRINT + "\n",
        capture_output=True,
        text=True,
    )
    assert "terminal foreground" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_kernel_of_nbconvert_and_one_of_nbval(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(PRINT)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    path = tmp_path / "probe.ipynb"
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--stdout"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert "nbconvert foreground" in done.stdout, done.stderr

    # nbval compares with what is stored, so the stored output is the expectation.
    stored = nbformat.v4.new_output("stream", name="stdout", text="nbval foreground\n")
    notebook.cells[0].update(outputs=[stored], execution_count=1)
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


# --- marks


def test_colab_shows_nothing_from_threads(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20261101")
    found = detect()
    assert (found.name, found.version) == ("colab", "release-colab_20261101")
    assert found.driver == "foreground" and "background" in found.why


def test_vscode_by_its_variable_even_on_a_jupyter_server(kernel, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "course.ipynb")
    assert detect().name == "jupyter"
    kernel["__vsc_ipynb_file__"] = "/home/me/course.ipynb"
    found = detect()
    assert found.name == "vscode" and found.driver == "thread"


@pytest.mark.parametrize(
    "variable, value, name, driver",
    [
        ("KAGGLE_KERNEL_RUN_TYPE", "Interactive", "kaggle", "foreground"),
        ("JPY_SESSION_NAME", "course.ipynb", "jupyter", "thread"),
        ("VSCODE_PID", "42", "vscode", "thread"),
        ("UNKNOWN", "1", "kernel", "foreground"),
    ],
)
def test_kernels_by_their_environment(kernel, monkeypatch, variable, value, name, driver):
    monkeypatch.setenv(variable, value)
    assert (detect().name, detect().driver) == (name, driver)


@pytest.mark.parametrize(
    "words, name",
    [
        (["/venv/bin/python", "/venv/bin/jupyter-lab", "--notebook-dir=notebooks"], "jupyterlab"),
        (["python3", "-m", "jupyterlab", "notebook"], "jupyterlab"),
        (["python3", "/usr/bin/jupyter-notebook", "--no-browser"], "notebook"),
        (["python", "-m", "notebook"], "notebook"),
        (["python", "/venv/bin/voila", "app.ipynb"], "voila"),
        (["python", "/venv/bin/pytest", "notebook", "--nbval-lax"], "nbval"),
        (["python", "/venv/bin/jupyterhub-singleuser"], None),
        (["bash", "-l"], None),
        ([], None),
    ],
)
def test_starters_by_their_command_lines(monkeypatch, words, name):
    assert started_by(monkeypatch, words) == name


def test_the_nearest_starter_counts(monkeypatch):
    convert, lab = ["python", "jupyter-nbconvert"], ["python", "jupyter-lab"]
    assert started_by(monkeypatch, convert, lab) == "nbconvert"
    assert started_by(monkeypatch, ["python.exe"], lab) == "jupyterlab"
    assert started_by(monkeypatch, ["python", "mine.py"], ["bash"], lab) is None


# --- the fault of ipykernel 7.0, and the override


@pytest.mark.parametrize(
    "version, faulty",
    [("6.29.5", False), ("7.0.0", True), ("7.0.1", True), ("7.1.0", False), ("7.10.0", False)],
)
def test_the_thread_fault_is_named(kernel, monkeypatch, version, faulty):
    monkeypatch.setenv("JPY_SESSION_NAME", "course.ipynb")
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace(__version__=version))
    found = detect()
    assert frontend.has_thread_fault(version) == faulty
    assert (version in found.why) == faulty
    assert found.runs_threads  # in a copied context, which is how sessions start theirs


def test_the_environment_overrides_what_is_detected(kernel, monkeypatch):
    monkeypatch.setenv("VBLORA_LAB_DRIVER", "thread")
    assert detect().driver == "thread" and "VBLORA_LAB_DRIVER" in detect().why
    monkeypatch.setenv("JPY_SESSION_NAME", "course.ipynb")
    monkeypatch.setenv("VBLORA_LAB_DRIVER", "foreground")
    assert detect().driver == "foreground"
    monkeypatch.setenv("VBLORA_LAB_DRIVER", "")
    assert detect().driver == "thread"


def test_another_override_is_refused(monkeypatch):
    monkeypatch.setenv("VBLORA_LAB_DRIVER", "threads")
    with pytest.raises(ConfigError, match="'threads'; allowed: 'thread', 'foreground'") as error:
        detect()
    assert isinstance(error.value, VBLoRAError)
