"""What if a sub-vector were mixed differently? Changes to a live adapter that can be taken back.

A mixture is forced through the logits it comes from: with log(w) at the wanted bank vectors and
-inf at all others, the top-k and its softmax give w again,

    softmax(log w) = w,        when the w sum to 1.

So every way of running the model (pooled, layer by layer, generating, merging) sees the change.
Whatever is overwritten is kept, and `undo` writes it back bit for bit. All writing is in place, in
a way that PyTorch counts as a new version of the parameter: the pool never goes on with matrices,
or folded weights, of before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vblora_lab.admixture import choose
from vblora_lab.errors import CounterfactualError
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.layer import VBLoRALayer

NEARLY = 1e-4  # how far from 1 the sum of forced weights may be


class _Saved(NamedTuple):
    """The values that one place held before: in the logits of a matrix, or in the bank."""

    parameters: nn.ParameterDict
    where: tuple[int | slice, ...]
    values: Tensor


class Counterfactual:
    """Try changes on one adapter of a model, one upon the other, and undo them.

    Args:
        model: a PeftModel, a VBLoRAModel or any module that holds VB-LoRA layers.
        adapter_name: which adapter.

    Sub-vectors are numbered as in `read_selection`. As a context manager it takes back every
    change at the end of the block:

        with Counterfactual(model) as what_if:
            what_if.swap(row=17, old=3, new=5)
            ...  # measure

    Don't train or save in between: a change is part of the parameters until it is undone.

    Raises:
        CounterfactualError: the model has no such adapter. From every change: it can't be made,
            or would have no effect since the adapter is merged, disabled or not active. Nothing
            is changed then.
    """

    def __init__(self, model: nn.Module, adapter_name: str = "default") -> None:
        self._layers = list(adapted_layers(model, adapter_name).values())
        if not self._layers:
            raise CounterfactualError(
                f"model has no VB-LoRA layer with an adapter called {adapter_name!r}."
            )
        self.adapter_name = adapter_name
        matrices = [
            parameters
            for layer in self._layers
            for parameters in (layer.vblora_logits_A, layer.vblora_logits_B)
        ]
        self._matrices = matrices
        sizes = [int(np.prod(self._of(matrix).shape[:2])) for matrix in matrices]
        self._starts = np.cumsum([0, *sizes])
        self._undo: list[tuple[str, list[_Saved]]] = []

    @property
    def changes(self) -> tuple[str, ...]:
        """The changes that are in force, oldest first, as sentences."""
        return tuple(sentence for sentence, _ in self._undo)

    def mixture(self, row: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The bank vectors that sub-vector `row` mixes now, best first, and their weights."""
        matrix, where = self._place(row)
        with torch.no_grad():
            indices, weights = choose(self._of(matrix)[where], self._topk)
        return tuple(indices.tolist()), tuple(weights.tolist())

    # --- changes

    def force(self, row: int, vectors: Sequence[int], weights: Sequence[float]) -> None:
        """Let a sub-vector be the sum of weights[i] * bank[vectors[i]].

        Args:
            row: number of the sub-vector.
            vectors: up to topk different bank vectors.
            weights: as many, none negative, of sum 1.
        """
        place = self._place(row)
        self._check_vectors(vectors)
        total = float(np.sum(weights))
        if len(weights) != len(vectors) or not all(0 <= w <= 1 for w in weights):
            raise CounterfactualError(
                f"weights={list(weights)}: must be {len(vectors)} numbers from 0 to 1, one for "
                "each of the vectors."
            )
        if abs(total - 1) > NEARLY:
            raise CounterfactualError(
                f"weights={list(weights)}: sum to {total:.4g}, and must sum to 1."
            )
        mixture = " + ".join(
            f"{w:.3f} of bank vector {v}" for v, w in zip(vectors, weights, strict=True)
        )
        self._force(place, vectors, weights, f"sub-vector {row} is {mixture}")

    def swap(self, row: int, old: int, new: int) -> None:
        """Let a sub-vector mix bank vector `new`, with the weight that `old` had."""
        place = self._place(row)
        vectors, weights = self.mixture(row)
        self._check_chosen("old", row, old, vectors)
        self._check_vectors([new])
        if new in vectors:
            raise CounterfactualError(
                f"new={new}: sub-vector {row} mixes it already; take one that it doesn't, or "
                "change its weight."
            )
        swapped = [new if vector == old else vector for vector in vectors]
        sentence = f"sub-vector {row} mixes bank vector {new} in the place of {old}"
        self._force(place, swapped, weights, sentence)

    def reweight(self, row: int, vector: int, weight: float) -> None:
        """Give one chosen bank vector another weight; the others keep their proportions.

        Args:
            row: number of the sub-vector.
            vector: one that it mixes.
            weight: from 0 to 1.
        """
        place = self._place(row)
        vectors, weights = self.mixture(row)
        self._check_chosen("vector", row, vector, vectors)
        if not 0 <= weight <= 1:
            raise CounterfactualError(f"weight={weight!r}: must be from 0 to 1.")
        if len(vectors) == 1 and weight != 1:
            raise CounterfactualError(
                f"weight={weight!r}: with topk=1 a sub-vector is one bank vector, at weight 1. "
                "Swap it for another instead."
            )
        rest = sum(w for v, w in zip(vectors, weights, strict=True) if v != vector)
        shares = [  # equal shares where the others have nothing to keep the proportions of
            weight if v == vector
            else (1 - weight) * (w / rest if rest > 0 else 1 / (len(vectors) - 1))
            for v, w in zip(vectors, weights, strict=True)
        ]  # fmt: skip
        sentence = f"sub-vector {row} mixes bank vector {vector} with weight {weight:.3f}"
        self._force(place, vectors, shares, sentence)

    def switch_off(self, vector: int, *, next_best: bool = False) -> None:
        """Take a bank vector out of every mixture.

        Args:
            vector: its number.
            next_best: False makes it a zero vector, so that sub-vectors lose what they took from
                it. True bars it from being chosen: the next best logit takes its place, and the
                weights are shared out anew.
        """
        self._check_vectors([vector])
        self._check_in_effect()
        if next_best:
            self._bar(vector)
            return
        bank = self._layers[0].vblora_vector_bank
        zeros = torch.zeros_like(self._of(bank)[vector])
        self._write([(bank, (vector,), zeros)], f"bank vector {vector} is switched off")

    # --- and back

    def undo(self) -> str | None:
        """Take back the latest change; returns its sentence, or None if there is none left."""
        if not self._undo:
            return None
        sentence, saved = self._undo[-1]
        self._put_back(saved)
        self._undo.pop()  # last, so that an undo cut short can be done again
        return sentence

    def restore(self) -> None:
        """Take back every change."""
        while self._undo:
            self.undo()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Within, none of the changes is in force; afterwards they are again."""
        undo, now = list(self._undo), self._now()
        try:
            self.restore()
            yield
        finally:
            self._go_back(undo, now)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """If the block raises, the same changes are in force as before it."""
        undo, now = list(self._undo), self._now()
        try:
            yield
        except BaseException:
            self._go_back(undo, now)
            raise

    def __enter__(self) -> Counterfactual:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    # --- within

    @property
    def _topk(self) -> int:
        return self._layers[0].topk[self.adapter_name]

    def _of(self, parameters: nn.ParameterDict) -> Tensor:
        """The tensor as it is now. Detached, it still counts versions, which `.data` wouldn't."""
        return parameters[self.adapter_name].detach()

    def _place(self, row: int) -> tuple[nn.ParameterDict, tuple[int, ...]]:
        """The logits that a sub-vector belongs to, and its two coordinates in them."""
        count = int(self._starts[-1])
        if not 0 <= row < count:
            raise CounterfactualError(f"row={row!r}: the adapter has sub-vectors 0 to {count - 1}.")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        matrix = self._matrices[number]
        within = np.unravel_index(row - self._starts[number], self._of(matrix).shape[:2])
        return matrix, tuple(int(i) for i in within)

    def _now(self) -> list[_Saved]:
        """What stands now wherever a change is in force."""
        places = [(m, where) for _, saved in self._undo for m, where, _ in saved]
        return [_Saved(m, where, self._of(m)[where].clone()) for m, where in places]

    def _go_back(self, undo: list[tuple[str, list[_Saved]]], now: list[_Saved]) -> None:
        """To the changes `undo`, made again as `now` says, without any that came after them."""
        kept = set(map(id, undo))
        while self._undo and id(self._undo[-1]) not in kept:
            self.undo()
        self._put_back(now)
        self._undo = undo

    def _put_back(self, saved: Sequence[_Saved]) -> None:
        with torch.no_grad():
            for parameters, where, values in saved:
                self._of(parameters)[where].copy_(values)

    def _check_vectors(self, vectors: Sequence[int]) -> None:
        size, topk = len(self._of(self._layers[0].vblora_vector_bank)), self._topk
        for vector in vectors:
            if not 0 <= vector < size:
                raise CounterfactualError(
                    f"bank vector {vector!r}: the bank has vectors 0 to {size - 1}."
                )
        if not 1 <= len(set(vectors)) == len(vectors) <= topk:
            raise CounterfactualError(
                f"vectors={list(vectors)}: must be 1 to {topk} different bank vectors, since "
                f"topk={topk}."
            )

    def _check_chosen(self, name: str, row: int, vector: int, chosen: Sequence[int]) -> None:
        if vector not in chosen:
            raise CounterfactualError(
                f"{name}={vector!r}: sub-vector {row} doesn't mix it; it mixes "
                f"{' and '.join(map(str, chosen))}."
            )

    def _check_in_effect(self) -> None:
        def state(layer: VBLoRALayer) -> str | None:
            if self.adapter_name in layer.merged_adapters:
                return "is merged into the base weights; call model.unmerge_adapter() first"
            if layer.disable_adapters:
                return "is disabled; call model.enable_adapters() first"
            if self.adapter_name not in layer.active_adapters:
                return f"is not active; call model.set_adapter({self.adapter_name!r}) first"
            return None

        for reason in filter(None, map(state, self._layers)):
            raise CounterfactualError(
                f"adapter {self.adapter_name!r} {reason}: a change would have no effect."
            )

    def _force(
        self,
        place: tuple[nn.ParameterDict, tuple[int, ...]],
        vectors: Sequence[int],
        weights: Sequence[float],
        sentence: str,
    ) -> None:
        self._check_in_effect()
        matrix, where = place
        logits = torch.full_like(self._of(matrix)[where], -torch.inf)
        shares = torch.tensor(weights, dtype=torch.float64).log()
        logits[list(vectors)] = shares.to(logits.device, logits.dtype)
        self._write([(matrix, where, logits)], sentence)

    def _bar(self, vector: int) -> None:
        for matrix in self._matrices:
            known = self._of(matrix).isfinite()
            others = known.sum(-1) - known[..., vector].int()
            if bool((others < self._topk).any()):
                raise CounterfactualError(
                    f"vector={vector}: some sub-vectors know no next best, since only their top "
                    f"{self._topk} logits are there (stored so, or forced). Switch it off with "
                    "next_best=False."
                )
        column = [
            (matrix, (slice(None), slice(None), vector), torch.tensor(-torch.inf))
            for matrix in self._matrices
        ]
        self._write(column, f"bank vector {vector} gives way to the next best")

    def _write(
        self,
        changes: Sequence[tuple[nn.ParameterDict, tuple[int | slice, ...], Tensor]],
        sentence: str,
    ) -> None:
        saved = [_Saved(m, where, self._of(m)[where].clone()) for m, where, _ in changes]
        self._undo.append((sentence, saved))  # first, so that a write cut short can be undone
        with torch.no_grad():
            for parameters, where, values in changes:
                self._of(parameters)[where].copy_(values)
