"""Base models: mini-OPT, which ships with the lab, and anything that a model hub or cache has.

Start with `load`. This room imports `errors` alone: a base knows nothing of adapters.
"""

from vblora_lab.bases.load import Base, label_of, load_base
from vblora_lab.bases.names import MINI_OPT, OPT_125M, OPT_125M_RANDOM
from vblora_lab.bases.sharing import share_weights
from vblora_lab.bases.skeleton import load_skeleton, skeleton_of

__all__ = [
    "MINI_OPT",
    "OPT_125M",
    "OPT_125M_RANDOM",
    "Base",
    "label_of",
    "load_base",
    "load_skeleton",
    "share_weights",
    "skeleton_of",
]
