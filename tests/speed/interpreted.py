"""Triton's kernels without a GPU: a file of tests runs itself once more, interpreted."""

import os
import re
import subprocess
import sys

import pytest
import torch

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if CUDA and not INTERPRETED else "cpu")
with_kernels = pytest.mark.skipif(
    not CUDA and not INTERPRETED, reason="run interpreted, by test_all_of_this_file_interpreted"
)
in_another_process = pytest.mark.skipif(
    CUDA or INTERPRETED, reason="the kernels run in this process"
)


def passed_interpreted(file: str) -> int:
    """How many tests of a file pass where kernels are interpreted; fails if one doesn't."""
    pytest.importorskip("triton", reason="Triton isn't installed; it has no build for this system")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout).group(1))
