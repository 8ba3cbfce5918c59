"""VBLoRAConfig: the 15 fields of a VB-LoRA adapter, as PEFT names them, checked when it is made.

Each field carries its own rules in its metadata (`help`, and `at_least` or `below` where a number
is bounded), so that a form or a command line can be built from `dataclasses.fields`.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import warnings
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from peft import PeftConfig, PeftType, TaskType

from vblora_lab.errors import ConfigError
from vblora_lab.tuner import checks

BIAS_MODES = ("none", "all", "vblora_only")
ALL_LINEAR = "all-linear"


class FolderOwner(Protocol):
    """What a config asks of the model that holds it (see `VBLoRAConfig.save_pretrained`)."""

    def complete_folder(self, config: VBLoRAConfig, folder: Path) -> VBLoRAConfig: ...


class Caution(NamedTuple):
    """A legal value that keeps an adapter from learning, and one that doesn't, if known."""

    field: str
    message: str
    suggestion: float | None


@dataclass
class VBLoRAConfig(PeftConfig):
    """Configuration of a VB-LoRA adapter, field for field PEFT's.

    A layer with weight W (out, in) gets the update B A, of A (r, in) and B (out, r), whose rows and
    columns are cut into sub-vectors of vector_length. Each is the sum of topk vectors of the bank
    (num_vectors, vector_length), by the softmax of the topk largest of its num_vectors logits. So
    r * (in + out) / vector_length * num_vectors logits are trained in a layer, and one bank.

    `adapter_config.json` written here loads in PEFT and the other way round. A value that can't be
    meant raises `ConfigError` at once; one that is legal but stops learning gives a warning.
    """

    r: int = field(
        default=4,
        metadata={"help": "Rank of the update B @ A of each adapted layer.", "at_least": 1},
    )
    num_vectors: int = field(
        default=256,
        metadata={
            "help": "Vectors in the bank that all adapted layers share.",
            "at_least": 1,
            "below": 2**31,
        },
    )
    vector_length: int = field(
        default=256,
        metadata={
            "help": "Length of a bank vector; must divide the input and output size of every "
            "adapted layer.",
            "at_least": 1,
        },
    )
    topk: int = field(
        default=2,
        metadata={
            "help": "Bank vectors mixed into one sub-vector; at most num_vectors. 2 suits most.",
            "at_least": 1,
        },
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules to adapt: a list of names or name endings, a regular expression for "
            "the whole name, 'all-linear', or nothing for PEFT's choice for this kind of model."
        },
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules to leave alone: a list of names or endings, or a regular expression."
        },
    )
    save_only_topk_weights: bool = field(
        default=False,
        metadata={
            "help": "Store the chosen indices and topk - 1 weights instead of all logits: far "
            "smaller, but for inference and merging only. Checkpoints of HF Trainer keep all."
        },
    )
    vblora_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Probability of dropping an input of the adapter.",
            "at_least": 0.0,
            "below": 1.0,
        },
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={
            "help": "Whether weights are stored (in, out), as in GPT-2's Conv1D. Read from the "
            "adapted layers; kept so that the file says it."
        },
    )
    bias: str = field(
        default="none",
        metadata={"help": "Biases to train: none, all, or the adapted layers' (vblora_only)."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other modules to train and store whole, such as a new classification head."
        },
    )
    init_vector_bank_bound: float = field(
        default=0.02,
        metadata={
            "help": "The bank starts uniform in [-bound, bound]; 0 would stop learning.",
            "at_least": 0.0,
        },
    )
    init_logits_std: float = field(
        default=0.1,
        metadata={
            "help": "The logits start normal with this standard deviation.",
            "at_least": 0.0,
        },
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata={
            "help": "Numbers of the layers to adapt; needs target_modules as a list.",
            "at_least": 0,
        },
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Name of the list of layers ('layers', 'h') that layers_to_transform counts in."
        },
    )

    def __post_init__(self) -> None:
        if self.task_type is not None:
            checks.choice("task_type", self.task_type, [task.value for task in TaskType])
        super().__post_init__()
        self.peft_type = PeftType.VBLORA
        self.validate()
        if not self.inference_mode:
            for caution in self.cautions():
                warnings.warn(caution.message, stacklevel=3)

    def validate(self) -> None:
        """Check every field, and bring numbers to int or float and lists to sets as PEFT does.

        Called on construction, and again before an adapter is injected, since fields can be set.

        Raises:
            ConfigError: names the field, its value and what is allowed.
        """
        for spec in dataclasses.fields(VBLoRAConfig):
            check = checks.OF_TYPE.get(str(spec.type))
            if check is not None:
                setattr(self, spec.name, check(spec, getattr(self, spec.name)))
        if self.topk > self.num_vectors:
            raise ConfigError(
                f"topk={self.topk}: can't choose {self.topk} vectors from a bank of num_vectors="
                f"{self.num_vectors}; topk may be at most {self.num_vectors}.",
                field="topk",
                suggestion=self.num_vectors,
            )
        checks.choice("bias", self.bias, BIAS_MODES)
        self.target_modules = checks.names_or_regex("target_modules", self.target_modules)
        if self.target_modules == set():
            raise ConfigError(
                "target_modules=[]: adapts nothing; name a module, or leave it out.",
                field="target_modules",
                suggestion=ALL_LINEAR,
            )
        self.exclude_modules = checks.names_or_regex("exclude_modules", self.exclude_modules)
        self._validate_modules_to_save()
        self._validate_layers_to_transform()
        self._validate_layers_pattern()

    def _validate_modules_to_save(self) -> None:
        names = self.modules_to_save
        if isinstance(names, str):
            raise ConfigError(
                f"modules_to_save={names!r}: must be a list; write [{names!r}].",
                field="modules_to_save",
                suggestion=[names],
            )
        if names is not None:
            self.modules_to_save = checks.strings("modules_to_save", names)

    def _validate_layers_to_transform(self) -> None:
        layers = self.layers_to_transform
        if layers is None:
            return
        spec = next(f for f in dataclasses.fields(self) if f.name == "layers_to_transform")
        if isinstance(layers, (list, tuple, set, range)):
            self.layers_to_transform = [checks.whole_number(spec, layer) for layer in layers]
        else:
            self.layers_to_transform = checks.whole_number(spec, layers)
        if self.inference_mode:
            return  # a stored adapter may say what follows: PEFT adapted every layer that matched
        if self.layers_to_transform == []:
            raise ConfigError(
                "layers_to_transform=[]: names no layer, and PEFT would adapt every layer; "
                "give their numbers, such as [0, 1], or leave it out for every layer.",
                field="layers_to_transform",
            )
        if isinstance(self.target_modules, str):
            raise ConfigError(
                f"layers_to_transform={layers!r}: has no effect when target_modules is a "
                f"string ({self.target_modules!r}); list the module names, or put the layer "
                r"numbers into the expression, as in '.*\.layers\.(0|1)\..*_proj'.",
                field="layers_to_transform",
            )

    def _validate_layers_pattern(self) -> None:
        pattern = self.layers_pattern
        if pattern is None:
            return
        if not isinstance(pattern, str):
            self.layers_pattern = checks.strings("layers_pattern", pattern)
        if pattern and self.layers_to_transform is None:
            raise ConfigError(
                f"layers_pattern={pattern!r}: says where layers_to_transform counts, but "
                "layers_to_transform isn't given; set it, for example to [0, 1], or leave both "
                "out.",
                field="layers_pattern",
            )
        for expression in [pattern] if isinstance(pattern, str) else pattern:
            checks.regex("layers_pattern", expression)

    def cautions(self) -> list[Caution]:
        """What is legal but keeps the adapter from learning; making such a config warns of it."""
        found = []
        if self.init_vector_bank_bound == 0:
            message = (
                "init_vector_bank_bound=0: the bank starts as zeros, so A, B and every gradient "
                "are zero and stay zero; use a small bound such as 0.02."
            )
            found.append(Caution("init_vector_bank_bound", message, 0.02))
        if self.init_logits_std == 0:
            message = (
                "init_logits_std=0: all logits start equal, so every sub-vector chooses the same "
                f"{self.topk} vectors; use a small deviation such as 0.1."
            )
            found.append(Caution("init_logits_std", message, 0.1))
        if self.topk == 1:
            message = (
                "topk=1: the softmax of a single logit is always 1, so the logits get no gradient "
                "and the choice of vectors never changes; only the bank learns. Use topk=2."
            )
            found.append(Caution("topk", message, 2 if self.num_vectors > 1 else None))
        return found

    # --- the model it belongs to. No field: neither compared, nor printed, nor stored.

    def belongs_to(self, owner: FolderOwner) -> None:
        """Let this model, which is only weakly referenced, complete the folders it is saved in."""
        self.__dict__["_owner"] = weakref.ref(owner)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, and what comes out of a pickle, belongs to no model until one says so.
        return {name: value for name, value in self.__dict__.items() if name != "_owner"}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write adapter_config.json; if a model holds this config, the model completes the folder.

        PeftModel.save_pretrained writes the weights of an adapter, tells the tuner no folder, and
        then calls this method on the config that the model holds. So this is the one place where
        the model can see that the folder is a training checkpoint, and it can do so whichever
        classes PEFT's tables hold (see `VBLoRAModel.complete_folder`).
        """
        owner = self.__dict__.get("_owner", lambda: None)()
        stored = self if owner is None else owner.complete_folder(self, Path(save_directory))
        PeftConfig.save_pretrained(stored, str(save_directory), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict; names that PEFT keeps as sets come sorted, so files don't vary."""
        values = super().to_dict()
        return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> VBLoRAConfig:
        """Make a config from the content of an adapter_config.json.

        PEFT looks the class up in its own table here; this one is always this class.

        Raises:
            ConfigError: the file is for another PEFT method, or a value in it can't be meant.
        """
        peft_type = kwargs.get("peft_type", PeftType.VBLORA)
        if peft_type != PeftType.VBLORA:
            raise ConfigError(
                f"peft_type={peft_type!r}: this is no VB-LoRA adapter (peft_type 'VBLORA'); load "
                "it with peft.PeftModel.from_pretrained."
            )
        known = {spec.name for spec in dataclasses.fields(cls)}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            warnings.warn(
                f"adapter_config.json has fields that this version doesn't know and ignores: "
                f"{', '.join(unknown)}. It was probably written by a newer PEFT.",
                stacklevel=2,
            )
        return cls(**{name: value for name, value in kwargs.items() if name in known})


def as_vblora_config(config: PeftConfig) -> VBLoRAConfig:
    """A copy of a VB-LoRA config as this package's class; PEFT's own class is welcome too.

    Raises:
        ConfigError: the config is for another method.
    """
    if isinstance(config, VBLoRAConfig):
        return copy.deepcopy(config)
    if getattr(config, "peft_type", None) != PeftType.VBLORA:
        raise ConfigError(
            f"config is of type {type(config).__name__}: must be a VBLoRAConfig; for other "
            "methods use peft.get_peft_model."
        )
    names = [spec.name for spec in dataclasses.fields(VBLoRAConfig)]
    return VBLoRAConfig(**{name: copy.deepcopy(getattr(config, name)) for name in names})
