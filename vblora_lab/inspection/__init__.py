"""What the bank does: which vectors each sub-vector chooses, and what if it did not.

`selection` is arrays alone and needs no torch: start there. `reading` reads one from a model,
`updates` the update of a layer, `one_layer` is one to see every number of, `counterfactual` changes an
adapter to see what happens. This room
imports `errors`, `admixture` and `tuner`.
"""
