"""Fill the caches of a Binder image: matplotlib's fonts, and OPT-125m from the model hub.

mini-OPT ships with the lab, so a hub out of reach makes the image poorer, not wrong.
"""

import matplotlib.font_manager
import torch
from huggingface_hub import snapshot_download

# A build with CUDA is gigabytes larger; Binder has no GPU.
assert torch.version.cuda is None, f"torch {torch.__version__} is not for the CPU only"
assert matplotlib.font_manager.fontManager.ttflist

try:
    # The repository has the weights of three frameworks.
    wanted = ["*.json", "*.txt", "pytorch_model.bin"]
    print("OPT-125m in", snapshot_download("facebook/opt-125m", allow_patterns=wanted))
except OSError as error:  # the errors of huggingface_hub are such
    print("OPT-125m is not cached:", error)
