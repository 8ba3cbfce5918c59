"""What a config would do to a model, found without touching it.

`record` is the frozen data of a plan, `plan` makes it, `rows` and `views` show it, `code` writes a
config as Python; `presets` are configs to start from, `target_choices` usual modules to adapt,
`file_size` counts the bytes of a weights file, and `activations` what a training pass keeps. This
room imports `errors`, `tables` and `tuner`; start with `record`.
"""
