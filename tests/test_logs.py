"""Whoever trains a float model hears nothing of a kernel for 4-bit weights that isn't there."""

import logging
import subprocess
import sys

import pytest

from vblora_lab.logs import BITSANDBYTES_ON_CPU, MISSING_KERNEL, lower_known_warnings

# What bitsandbytes 0.50 logs on import, on a CPU with bfloat16 instructions.
TEMPLATE = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure ..."


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import vblora_lab; vblora_lab.load_base()"],
        ["-c", "import vblora_lab; vblora_lab.get_peft_model, vblora_lab.TrainingSession"],
        ["-m", "vblora_lab.cli", "plan", "mini-opt"],
    ],
    ids=["load_base", "PEFT and the Trainer", "vblora-lab plan"],
)
def test_a_fresh_process_says_nothing_on_stderr(arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.fixture
def logger():
    """The logger of bitsandbytes' CPU operations, with the filter that importing us gave it."""
    logger = logging.getLogger(BITSANDBYTES_ON_CPU)
    level = logger.level
    yield logger
    logger.setLevel(level)


def test_the_missing_kernel_is_information(logger, caplog):
    logger.warning(TEMPLATE, "No module named 'kernels'")
    assert caplog.records == []
    logger.setLevel(logging.INFO)
    logger.warning(TEMPLATE, "No module named 'kernels'")
    (record,) = caplog.records
    assert (record.levelno, record.levelname) == (logging.INFO, "INFO")
    assert record.getMessage().startswith(f"{MISSING_KERNEL} from")
    assert "No module named 'kernels'" in record.getMessage()


def test_other_warnings_stay(logger, caplog):
    logger.warning("something else about %s", "4 bits")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING


def test_lowering_them_anew_changes_nothing(logger, caplog):
    lower_known_warnings()
    logger.setLevel(logging.INFO)
    logger.warning(TEMPLATE, "why")
    assert len(caplog.records) == 1
