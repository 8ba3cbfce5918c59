"""What the bank does: which vectors each sub-vector chooses, and what if it did not.

`selection` is arrays alone and needs no torch: start there. `chance` says what of it is more than
chance would give, and needs none either. `reading` reads a selection from a model, `updates` the
update of a layer, `counterfactual` changes an adapter to see what happens. This room imports
`errors`, `admixture` and `tuner`.
"""
