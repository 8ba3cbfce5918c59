"""The same answers, faster: nothing here changes what VB-LoRA computes.

Read `pool` first (one admixture per pass, for all layers), then `kernels` (that admixture on a
GPU), `frozen_linear` (a layer and its update in one node) and `captured` (a training step as one
CUDA graph). This room imports `errors` and `admixture`, and knows nothing of PEFT.
"""
