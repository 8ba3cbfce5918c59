"""VB-LoRA as a PEFT tuner: config, layers and model under PEFT's names, and PEFT's files.

Start with `config`, `layer` and `model`; README.md in this folder says in which order to read the
rest. This room imports `errors`, `admixture`, `files`, `tables` and `speed`.
"""
