"""Thousands of adapters on one base model: where they are kept, and how they are served.

`store` keeps adapters and their banks in one folder, by name (`store_files` has its folders,
`store_index` its index; `store_sizes` says what they take). `live` has adapters in memory for mixed
batches of a model (`live_choices` says what is held of each, `live_memory` which go). `plugin` lets
vLLM ask for adapters of a store, each as a LoRA that `plugin_cache` keeps. This room imports
`errors`, `files`, `tables`, `admixture`, `speed`, `tuner`, `convert` and `bases`; start with
`store`, or with `live`.
"""
