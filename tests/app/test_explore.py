"""The explorer as a page: refused early, drawn from a config.json alone, closed to strangers."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import vblora_lab
from vblora_lab import VBLoRAConfig, plan
from vblora_lab.app import explore
from vblora_lab.bases import load_skeleton
from vblora_lab.cli import main
from vblora_lab.errors import BaseModelError, MissingExtraError

CONFIG = Path(vblora_lab.__file__).parent / "assets" / "mini-opt" / "config.json"


@pytest.fixture
def folder(tmp_path):
    """A model's config.json and nothing else."""
    shutil.copy(CONFIG, tmp_path)
    return str(tmp_path)


def test_without_voila_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(explore.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"vblora-lab\[app\]"):
        explore.explore()
    assert main(["explore"]) == 2
    assert "vblora-lab[app]" in capsys.readouterr().err


def test_a_wrong_model_is_refused_before_anything_is_served(monkeypatch, tmp_path):
    monkeypatch.setattr(explore.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(explore.importlib, "import_module", lambda name: pytest.fail("served"))
    with pytest.raises(BaseModelError):
        explore.explore(str(tmp_path))


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_a_port_that_does_not_exist_is_refused(capsys, port):
    assert main(["explore", f"--port={port}"]) == 2
    assert f"port={port}: must be from 1 to 65535" in capsys.readouterr().err


def test_the_selection_of_a_new_adapter_needs_no_weights(folder):
    skeleton = load_skeleton(folder)
    before = {name: p.shape for name, p in skeleton.named_parameters()}
    config = VBLoRAConfig(target_modules="all-linear", vector_length=128, topk=3, num_vectors=64)
    selection = explore.untrained_selection(skeleton, config)
    assert len(selection.indices) == plan(skeleton, config).sub_vectors
    assert selection.indices.shape[1] == 3 and selection.num_vectors == 64
    assert {name: p.shape for name, p in skeleton.named_parameters()} == before
    assert all(p.is_meta for p in skeleton.parameters())
    again = explore.untrained_selection(skeleton, config)
    np.testing.assert_array_equal(selection.indices, again.indices)
    other = explore.untrained_selection(skeleton, config, seed=1)
    assert (selection.indices != other.indices).any()
    # The largest of many equal draws is anywhere: no bank vector is preferred.
    expected = selection.indices.size / 64
    assert selection.counts().max() < expected + 6 * expected**0.5


def test_the_page_follows_the_config(folder):
    page = explore.page(folder)
    explorer, _, note, heatmap = page.children
    assert len(heatmap.selection.indices) == explorer.plan.sub_vectors
    explorer.config = VBLoRAConfig(target_modules=["fc1"], num_vectors=32)
    assert heatmap.num_vectors == 32
    assert len(heatmap.selection.indices) == explorer.plan.sub_vectors
    explorer.config = VBLoRAConfig(target_modules=["fc1"], vector_length=100)
    assert heatmap.selection is None and "doesn't fit" in note.value


def test_too_many_cells_are_not_drawn(folder, monkeypatch):
    monkeypatch.setattr(explore, "MOST_CELLS", 1000)
    _, _, note, heatmap = explore.page(folder).children
    assert heatmap.selection is None and "too many" in note.value


@pytest.mark.slow
def test_only_who_has_the_token_sees_the_page(folder, tmp_path):
    pytest.importorskip("voila")
    command = [sys.executable, "-m", "vblora_lab.cli", "explore", folder, "--no-browser"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command += ["--port", str(free.getsockname()[1])]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            address = _address(tmp_path / "log", server)
            assert address.startswith("http://127.0.0.1:") and "?token=" in address
            with urllib.request.urlopen(address, timeout=60) as answer:
                text = answer.read().decode()
            assert "<title>VB-LoRA explorer" in text
            assert "application/vnd.jupyter.widget-view+json" in text, text  # the page, no error
            stranger = urllib.request.Request(address, headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(stranger, timeout=60)
            with urllib.request.urlopen(address.partition("?")[0], timeout=60) as answer:
                assert "/login" in answer.url
        finally:
            server.terminate()
            server.wait(30)


def _address(log, server):
    for _ in range(600):
        if found := re.search(r"http://\S+token=\S+", log.read_text()):
            return found[0]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise TimeoutError(log.read_text())
