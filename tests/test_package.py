"""The package as a whole: whole in its names, at run time and for a type checker."""

import subprocess
import sys
from pathlib import Path

import pytest

import vblora_lab
import vblora_lab.runs
import vblora_lab.train
import vblora_lab.widgets


@pytest.mark.parametrize(
    "room", [vblora_lab, vblora_lab.runs, vblora_lab.widgets], ids=lambda room: room.__name__
)
def test_every_public_name_is_there(room):
    assert room.__all__
    for name in room.__all__:
        assert getattr(room, name) is not None
        assert name in dir(room)


def test_what_a_run_says_and_leaves_has_its_old_address_too():
    for name in vblora_lab.runs.__all__:
        assert getattr(vblora_lab.train, name) is getattr(vblora_lab.runs, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import vblora_lab; vblora_lab.load_base()"],
        ["-c", "import peft; from transformers import Trainer; import vblora_lab"],
        ["-m", "vblora_lab.cli", "plan", "mini-opt"],
    ],
    ids=["load_base", "PEFT and the Trainer first", "vblora-lab plan"],
)
def test_a_fresh_process_says_nothing_on_stderr(arguments):
    """PEFT imports bitsandbytes where that is installed, and on some CPUs it warns in red."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "is bitsandbytes installed beside the rest? See CONTRIBUTING.md"


@pytest.mark.slow
def test_a_type_checker_sees_every_public_name(tmp_path):
    """mypy reads what __init__.pyi says; at run time lazy_loader does. Neither may give Any."""
    names = vblora_lab.__all__
    program = tmp_path / "program.py"
    lines = [f"from vblora_lab import {name}\nreveal_type({name})" for name in names]
    program.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(program)],
        cwd=Path(vblora_lab.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(names)
    assert [line for line in revealed if line.endswith('"Any"')] == []
