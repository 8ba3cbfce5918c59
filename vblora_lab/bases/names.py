"""The names by which base models are known here, and where the shipped one lies."""

from pathlib import Path

MINI_OPT = "mini-opt"
OPT_125M = "facebook/opt-125m"
OPT_125M_RANDOM = "opt-125m-random"
SMOLLM2 = "smollm2-135m"
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the original, which is not 4-bit
MINILM = "minilm-l6"
MINILM_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"
IN_FOLDERS = (
    MINI_OPT,
    SMOLLM2,
    MINILM,
)  # loaded from a folder of that name, but known by the name alone
ASSETS = Path(__file__).resolve().parents[1] / "assets"
