"""What a config would do to a model, found without touching it.

`record` is the frozen data of a plan, `plan` makes it, `rows` and `views` show it, `code` writes a
config as Python; `presets` are configs to start from, and `activations` counts what a training pass
keeps. This room imports `errors`, `tables` and `tuner`; start with `record`.
"""
