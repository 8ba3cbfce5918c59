"""Wheel and sdist: built as for the index, complete, and light to import once installed."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lazy_loader
import platforms
import pytest

pytestmark = pytest.mark.slow  # builds both, and an environment

FOLDER = platforms.ROOT / "vblora_lab"
# Everything in the package but what Python leaves behind.
FILES = {
    path.relative_to(FOLDER.parent).as_posix()
    for path in FOLDER.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with both. The wheel is made from the sdist, so it shows that this is complete."""
    folder = tmp_path_factory.mktemp("built")
    source = platforms.checkout(folder / "source")
    command = [sys.executable, "-m", "build", "--outdir", folder / "dist", source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A clean environment that has the wheel, and of all that it depends on, lazy_loader alone."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    wheel = next(built.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = next(
        path for path in (folder / "bin/python", folder / "Scripts/python.exe") if path.exists()
    )
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(list(map(str, command)), check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    shutil.copytree(Path(lazy_loader.__file__).parent, Path(site) / "lazy_loader")
    return python, Path(site)


def run(installed, code, *, depends=()):
    python, _ = installed
    code = f"import sys; sys.path += {list(map(str, depends))!r}\n{code}"
    done = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, cwd=python.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_hold_every_file_of_the_package(built):
    wheel = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    assert wheel >= FILES
    assert "vblora_lab/py.typed" in wheel
    assert "vblora_lab/assets/mini-opt/model.safetensors" in wheel
    strangers = {name for name in wheel if not name.startswith(("vblora_lab/", "vblora_lab-"))}
    assert not strangers
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert FILES | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_wheel_says_what_it_is(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        text = wheel.read(name).decode()
        commands = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert "Project-URL: Repository, https://" in text
    assert "vblora-lab = vblora_lab.cli:main" in commands


def test_importing_what_is_installed_needs_lazy_loader_alone(installed):
    """With no other dependency: the package, its version and the command's help."""
    out = run(installed, "import vblora_lab; print(vblora_lab.__version__, vblora_lab.__file__)")
    assert str(installed[1]) in out
    done = subprocess.run(
        [installed[0], "-I", "-m", "vblora_lab.cli", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "doctor" in done.stdout


def test_the_installed_package_adapts_the_installed_model(installed):
    code = """
import vblora_lab
base = vblora_lab.load_base(device="cpu")
config = vblora_lab.VBLoRAConfig(target_modules=["q_proj"], num_vectors=16, vector_length=64)
model = vblora_lab.get_peft_model(base.model, config)
print(vblora_lab.__file__, sum(p.numel() for p in model.parameters() if p.requires_grad) > 0)
"""
    depends = [path for path in sys.path if path.endswith("site-packages")]
    out = run(installed, code, depends=depends)
    assert str(installed[1]) in out and out.strip().endswith("True")
