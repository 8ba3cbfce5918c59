"""Adapters that were trained in two ways, compared."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def assert_alike(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], relative: float = 1e-4
) -> None:
    """The tensors of the same names are within rounding of each other, each as a whole.

    relative: of a tensor's norm. Adam divides by the root of gradients, small ones too, so that
    rounding grows in single numbers; what differs in kind moves many numbers by a learning rate.
    """
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name] - theirs[name]).norm() <= relative * theirs[name].norm(), name
