"""The same answers, faster: nothing here changes what VB-LoRA computes.

README.md says in which order to read it and why it is safe. This room imports `errors` and
`admixture`, and knows nothing of PEFT.
"""
