"""OPT-125m's shape trains at 4 x 64 tokens within what a small hosted machine has."""

import subprocess
import sys

import pytest

LIMIT = 1.4e9  # bytes

SCRIPT = """
import sys
for name in ("bitsandbytes", "datasets"):  # what installing the package alone doesn't bring in
    sys.modules[name] = None
from vblora_lab import TrainingSession, VBLoRAConfig, load_base

config = VBLoRAConfig(r=4, target_modules=["q_proj", "v_proj"])  # bank 256 x 256, k=2
session = TrainingSession(
    load_base("opt-125m-random", device="cpu"), config, steps=2, batch_size=4,
    eval_examples=4, sample_count=1,
)
row = {"input_ids": list(range(2, 66)), "labels": [-100] * 32 + list(range(34, 66))}
session._encoded = [row] * 8
assert len(session.run().losses) == 2 and len(row["input_ids"]) == 64
# VmHWM is the peak of this program alone; getrusage counts the parent's up to the exec as well.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", 1024 * int(peak.split()[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_opt_125m_trains_within_the_limit():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    assert 0.6e9 < peak < LIMIT, f"{peak:,} bytes"  # the weights alone are 0.5e9
