"""The names by which base models are known here, and where the shipped one lies."""

from pathlib import Path

MINI_OPT = "mini-opt"
OPT_125M = "facebook/opt-125m"
OPT_125M_RANDOM = "opt-125m-random"
ASSETS = Path(__file__).resolve().parents[1] / "assets"
