"""The package as a whole: light to import, and whole in its names."""

import subprocess
import sys

import vblora_lab


def test_importing_the_package_loads_none_of_its_heavy_parts():
    heavy = ["torch", "transformers", "peft", "matplotlib", "ipywidgets", "numpy"]
    script = f"import sys, vblora_lab; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there():
    assert sorted(vblora_lab._HOMES) == sorted(vblora_lab.__all__)
    for name in vblora_lab.__all__:
        assert getattr(vblora_lab, name) is not None
        assert name in dir(vblora_lab)
