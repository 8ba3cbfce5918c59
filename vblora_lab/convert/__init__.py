"""To LoRA and back, as files of PEFT: `export` writes what a bank makes, `compress` fits a bank.

`export_lora` is exact. `compress_lora` looks for a bank and logits that make a given LoRA's update:
`factors` cuts it into sub-vectors, `fitting` finds the bank. No base model is needed, so an adapter
of one that is too large for this machine can be converted on it. This room imports `errors`,
`admixture`, `files` and `tuner`; start with `export`.
"""
