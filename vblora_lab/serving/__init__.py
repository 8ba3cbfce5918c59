"""Thousands of adapters on one base model: where they are kept, and how engines come by them.

`store` keeps adapters and their banks in one folder, by name: `store_files` has its folders and
`store_index` its index. `plugin` lets vLLM ask for them, each as a LoRA that `plugin_cache` keeps.
`live` has adapters in memory for mixed batches of a model (`live_choices` says what is held of
each, `live_memory` which go). This room imports `errors`, `files`, `tables`, `admixture`, `speed`,
`tuner`, `convert` and `bases`; start with `store`, or with `live`.
"""
