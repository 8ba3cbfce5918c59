"""What `tune` chooses from: configs and learning rates whose stored adapter fits into a budget.

A draw never has to be thrown away. The size of a file and the memory of training grow with the
rank, with the bank and with topk; so each of them is drawn from a range that ends where the
smallest choice of what is drawn after it would still fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

from peft import LoraConfig, PeftConfig
from torch import nn

from vblora_lab.errors import ConfigError, did_you_mean
from vblora_lab.planning.file_size import lora_file_bytes, vblora_file_bytes
from vblora_lab.planning.plan import ADAMW_STATES, Plan, plan
from vblora_lab.planning.target_choices import SHORTEST_VECTOR, target_choices
from vblora_lab.tables import in_bytes
from vblora_lab.train.optimizer import LearningRates
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig
from vblora_lab.tuner.targets import resolve

Method = Literal["vblora", "lora"]
METHODS: tuple[Method, ...] = ("vblora", "lora")
LABELS = {"vblora": "VB-LoRA", "lora": "LoRA"}
TASK_TYPE = "CAUSAL_LM"

RANKS = (1, 16)
BANK_SIZES = (8, 1024)
TOPK = (2, 8)  # with one vector its weight is 1, and the logits have no gradient
BANK_RATES = (3e-4, 1e-1)
LOGITS_RATES = (3e-3, 1.0)
LORA_RATES = (1e-4, 3e-2)


@dataclass(frozen=True)
class Candidate:
    """What a trial trains.

    Attributes:
        method: "vblora" or "lora".
        targets: which of the usual choices of modules is adapted, such as "attention".
        config: for a `TrainingSession`, or of PEFT's LoRA.
        learning_rates: peak rates.
        bytes: of the adapter's weights file, at most.
        memory: bytes that training takes: weights, adapter, gradients and optimizer.
    """

    method: Method
    targets: str
    config: PeftConfig
    learning_rates: LearningRates
    bytes: int
    memory: int


@dataclass(frozen=True)
class Shape:
    """A candidate without its learning rates. num_vectors, vector_length and topk are VB-LoRA's."""

    method: Method
    targets: str
    r: int = RANKS[0]
    num_vectors: int = BANK_SIZES[0]
    vector_length: int = 1
    topk: int = TOPK[0]


class Space:
    """The candidates for a model within a budget.

    Args:
        model: the base model, or its skeleton; never changed.
        bytes: that the weights file of the adapter may have.
        memory: bytes that training may take, without activations; None for any.
        methods: some of `METHODS`.

    Raises:
        ConfigError: a method that there isn't; or nothing fits, and then the message names the
            smallest size, or the smallest memory, that would.
    """

    def __init__(
        self,
        model: nn.Module,
        bytes: int,
        memory: int | None = None,
        methods: Sequence[Method] = METHODS[:1],
    ) -> None:
        check_methods(methods)
        self._model, self._bytes, self._memory = model, bytes, memory
        self._methods = tuple(methods)
        _, linears = resolve(model, VBLoRAConfig(target_modules=ALL_LINEAR, vector_length=1))
        self._choices = target_choices(linears)
        self._sizes: dict[Shape, tuple[int, int]] = {}
        if not self._smallest:
            self._refuse()

    def draw(self, trial: Any) -> Candidate:
        """A candidate that fits.

        Args:
            trial: Optuna's, which chooses; or one that has chosen, and then the candidate is that
                one again.
        """
        method = _one_of(trial, "method", list(dict.fromkeys(s.method for s in self._smallest)))
        fitting = [shape for shape in self._smallest if shape.method == method]
        targets = _one_of(
            trial, f"{method} targets", list(dict.fromkeys(s.targets for s in fitting))
        )
        if method == "lora":
            shape = self._draw_size(trial, Shape(method, targets), "r", RANKS)
            rates = LearningRates(other=trial.suggest_float("lora rate", *LORA_RATES, log=True))
        else:
            lengths = [shape.vector_length for shape in fitting if shape.targets == targets]
            length = _one_of(trial, f"vector_length on {targets}", lengths)
            shape = Shape(method, targets, vector_length=length)
            for name, ends in (("r", RANKS), ("num_vectors", BANK_SIZES), ("topk", TOPK)):
                shape = self._draw_size(trial, shape, name, ends)
            rates = LearningRates(
                bank=trial.suggest_float("bank rate", *BANK_RATES, log=True),
                logits=trial.suggest_float("logits rate", *LOGITS_RATES, log=True),
            )
        size, memory = self._size(shape)
        return Candidate(method, targets, self.config(shape), rates, size, memory)

    def config(self, shape: Shape) -> PeftConfig:
        """The config of a shape."""
        modules = list(self._choices[shape.targets])
        if shape.method == "lora":
            return LoraConfig(
                r=shape.r, lora_alpha=shape.r, target_modules=modules, task_type=TASK_TYPE
            )
        return self._vblora(shape)

    def _draw_size(self, trial: Any, shape: Shape, name: str, ends: tuple[int, int]) -> Shape:
        """The shape with a whole number between these ends, of those with which it fits."""
        changed = partial(_with, shape, name)
        high = _largest(*ends, lambda value: self._fits(changed(value)))
        return changed(trial.suggest_int(f"{shape.method} {name}", ends[0], high, log=True))

    @cached_property
    def _smallest(self) -> list[Shape]:
        """The smallest shape of each method, choice of targets and vector length, if it fits."""
        return [shape for shape in self._all_smallest() if self._fits(shape)]

    def _all_smallest(self) -> list[Shape]:
        shapes: list[Shape] = []
        for method in self._methods:
            for targets in self._choices:
                shape = Shape(method, targets)
                lengths = self._lengths(shape) if method == "vblora" else [1]
                shapes += [_with(shape, "vector_length", length) for length in lengths]
        return shapes

    def _lengths(self, shape: Shape) -> list[int]:
        every = plan(self._model, self._vblora(shape)).vector_lengths
        return [length for length in every if length >= SHORTEST_VECTOR] or list(every)

    def _fits(self, shape: Shape) -> bool:
        size, memory = self._size(shape)
        return size <= self._bytes and (self._memory is None or memory <= self._memory)

    def _size(self, shape: Shape) -> tuple[int, int]:
        """Bytes of the file and of the memory."""
        if shape not in self._sizes:
            planned = plan(self._model, self._vblora(shape))
            self._sizes[shape] = (
                _lora_size(planned)
                if shape.method == "lora"
                else (vblora_file_bytes(planned), planned.memory.total)
            )
        return self._sizes[shape]

    def _vblora(self, shape: Shape) -> VBLoRAConfig:
        return VBLoRAConfig(
            r=shape.r,
            num_vectors=shape.num_vectors,
            vector_length=shape.vector_length,
            topk=shape.topk,
            target_modules=list(self._choices[shape.targets]),
            save_only_topk_weights=True,
            task_type=TASK_TYPE,
        )

    def _refuse(self) -> None:
        sizes = [self._size(shape) for shape in self._all_smallest()]
        least = min(size for size, _ in sizes)
        if least > self._bytes:
            raise ConfigError(
                f"bytes={self._bytes}: no adapter is so small; the smallest here takes "
                f"{in_bytes(least)}, so give bytes={least} or more",
                field="bytes",
                suggestion=least,
            )
        least = min(memory for size, memory in sizes if size <= self._bytes)
        raise ConfigError(
            f"memory={self._memory}: training takes {in_bytes(least)} at least, so give "
            f"memory={least} or more, or a smaller base model",
            field="memory",
            suggestion=least,
        )


def check_methods(methods: Sequence[str]) -> None:
    """Raises `ConfigError` for what is not one or more of `METHODS`, each once."""
    for method in methods:
        if method not in METHODS:
            hint = did_you_mean(method, METHODS)
            raise ConfigError(f"methods has {method!r}: must be of {list(METHODS)}.{hint}")
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise ConfigError(
            f"methods={methods!r}: must be a list of one or more of {list(METHODS)}, each once, "
            f"such as {list(METHODS[:1])}"
        )


def _lora_size(planned: Plan) -> tuple[int, int]:
    adapter_gradients_and_states = (2 + ADAMW_STATES) * planned.lora_bytes
    return lora_file_bytes(planned), planned.memory.weights + adapter_gradients_and_states


def _one_of(trial: Any, name: str, choices: Sequence[Any]) -> Any:
    return trial.suggest_categorical(name, choices)


def _with(shape: Shape, name: str, value: int) -> Shape:
    return Shape(**{**vars(shape), name: value})


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``high`` that fits; ``low`` does, and all below one that does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
