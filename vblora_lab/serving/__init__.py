"""Thousands of adapters on one base model: where they are kept, and how engines come by them.

`store` keeps adapters and their banks in one folder, by name (`store_files` has its folders,
`store_index` its index). This room imports `errors`, `files`, `tuner`, `convert` and `bases`;
start with `store`.
"""
