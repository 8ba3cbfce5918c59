"""What the bank does: which vectors each sub-vector chooses, and what if it did not.

`selection` is arrays alone and needs no torch: start there. `chance` says what of it is more than
chance would give, and needs none either. `reading` reads a selection from a model, `updates` the
update of a layer, `counterfactual` changes an adapter to see what happens, and `one_layer` is a
layer small enough to see every number. This room imports `errors`, `admixture` and `tuner`.
"""
