"""What a plan says, as frozen data: it can be shown with no model in memory."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from vblora_lab.tuner.problems import Problem


@dataclass(frozen=True)
class Target:
    """A module that the config adapts.

    Attributes:
        name: full name in the base model.
        kind: class of the module.
        in_features, out_features: its sizes.
        tiles_A: (r, in_features / vector_length), the sub-vectors of A; None if it doesn't divide.
        tiles_B: (out_features / vector_length, r), those of B.
        sub_vectors: how many A and B have together.
        logits: trained parameters of this module, num_vectors per sub-vector.
        lora_parameters: what LoRA of the same rank trains here.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    tiles_A: tuple[int, int] | None
    tiles_B: tuple[int, int] | None
    sub_vectors: int
    logits: int
    lora_parameters: int


@dataclass(frozen=True)
class Skipped:
    """A module with a weight matrix that is left as it is, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds.

    Attributes:
        weights: the base model's parameters and buffers in the dtype they have, tied ones once.
        adapter: bank, logits, and copies of modules_to_save.
        gradients: one number per trained parameter, in its dtype.
        optimizer: two numbers per trained parameter, as AdamW keeps.
        batch: (batch size, length in tokens) that `activations` is for; None if not asked for.
        activations: what a pass over one such batch keeps for its backward pass (see
            `activations.activation_bytes`); None where it wasn't counted.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    batch: tuple[int, int] | None = None
    activations: int | None = None

    @property
    def total(self) -> int:
        """The sum, in bytes; without activations where they weren't counted."""
        whatever_the_batch = self.weights + self.adapter + self.gradients + self.optimizer
        return whatever_the_batch + (self.activations or 0)


@dataclass(frozen=True)
class PlanRecord:
    """What a config would do to a model, as plain data.

    If the config doesn't fit, `problems` says why, and sizes count the targets that can be cut.

    Attributes:
        model: class of the base model.
        r, num_vectors, vector_length, topk, save_only_topk_weights: the config's.
        targets: the modules that are adapted, in the model's order.
        skipped: the other modules with a weight matrix.
        problems: what keeps the config from fitting, each with a value that would settle it.
        cautions: what is neither trained nor adapted though one might expect it, and an adapter
            that is stored in more bytes than LoRA's.
        vector_lengths: those that divide every size of every target, ascending.
        base_parameters: of the model as it is.
        bank_parameters, logits_parameters: trained by VB-LoRA.
        other_parameters: trained besides, by any method: biases and modules_to_save.
        full_bytes, topk_bytes: of the tensors of the stored adapter, in either format.
        float16_bytes, int8_bytes: of the top-k format in fewer bits, see `save_adapter`.
        other_bytes: the part of these that biases and modules_to_save take, and the base weight of
            an output head that is adapted by its name, which PEFT stores.
        lora_parameters, lora_bytes: the same for LoRA of rank r on the same modules, with the same
            other parameters; stored in float32.
        memory: that training would take.
    """

    model: str
    r: int
    num_vectors: int
    vector_length: int
    topk: int
    save_only_topk_weights: bool
    targets: tuple[Target, ...]
    skipped: tuple[Skipped, ...]
    problems: tuple[Problem, ...]
    cautions: tuple[Problem, ...]
    vector_lengths: tuple[int, ...]
    base_parameters: int
    bank_parameters: int
    logits_parameters: int
    other_parameters: int
    full_bytes: int
    topk_bytes: int
    float16_bytes: int
    int8_bytes: int
    other_bytes: int
    lora_parameters: int
    lora_bytes: int
    memory: Memory

    @property
    def fits(self) -> bool:
        """Whether the config can be injected into the base model."""
        return not self.problems

    @property
    def sub_vectors(self) -> int:
        """How many sub-vectors are mixed from the bank."""
        return sum(target.sub_vectors for target in self.targets)

    @property
    def trained_parameters(self) -> int:
        """Bank, logits and others."""
        return self.bank_parameters + self.logits_parameters + self.other_parameters

    @property
    def stored_bytes(self) -> int:
        """In the format that save_only_topk_weights asks for."""
        return self.topk_bytes if self.save_only_topk_weights else self.full_bytes

    def to_json(self) -> str:
        """All of it as JSON, the properties included."""
        values = dataclasses.asdict(self)
        values["memory"]["total"] = self.memory.total
        for name in ("fits", "sub_vectors", "trained_parameters", "stored_bytes"):
            values[name] = getattr(self, name)
        return json.dumps(values, indent=2)
