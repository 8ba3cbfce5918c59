"""Nine configs to start from, each for a base model such as OPT; most fit other families too.

    vblora_lab.PRESETS["basic"].config()  ->  a new VBLoRAConfig each time

The numbers suit hidden sizes that 256 or 128 divides; `plan` says whether a preset fits a model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from vblora_lab.errors import ConfigError, did_you_mean
from vblora_lab.tuner.config import ALL_LINEAR, VBLoRAConfig


@dataclass(frozen=True)
class Preset:
    """A config with a name that says what it shows.

    Attributes:
        title: a few words.
        description: what it is for, in a sentence.
        fields: the fields of the config that aren't VBLoRAConfig's defaults.
        training: arguments of transformers.TrainingArguments for a run with it; empty where the
            preset is about the adapter alone.
    """

    title: str
    description: str
    fields: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)

    def config(self, **changes: Any) -> VBLoRAConfig:
        """A new config, with some fields changed if wanted. Raises `ConfigError` as any config."""
        return VBLoRAConfig(**{**copy.deepcopy(dict(self.fields)), **changes})

    def training_arguments(self) -> dict[str, Any]:
        """A new dict of arguments for transformers.TrainingArguments."""
        return copy.deepcopy(dict(self.training))


def _preset(title: str, description: str, training: dict | None = None, **fields: Any) -> Preset:
    fields = {"task_type": "CAUSAL_LM", **fields}
    return Preset(title, description, MappingProxyType(fields), MappingProxyType(training or {}))


ATTENTION = ["q_proj", "v_proj"]

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "basic": _preset(
            "Basic",
            "Queries and values at rank 4, from one bank of 256 vectors of length 256.",
            target_modules=ATTENTION,
        ),
        "larger-bank": _preset(
            "Larger bank",
            "Twice the rank, and 512 shorter vectors to choose from.",
            r=8,
            num_vectors=512,
            vector_length=128,
            target_modules=ATTENTION,
        ),
        "topk-file": _preset(
            "Small file",
            "Stores the chosen indices and weights alone: far smaller, for inference only.",
            target_modules=ATTENTION,
            save_only_topk_weights=True,
        ),
        "all-linear": _preset(
            "All linear layers",
            "Adapts every linear layer except the output head.",
            target_modules=ALL_LINEAR,
            exclude_modules=["lm_head"],
        ),
        "first-layers": _preset(
            "First five layers",
            "Adapts layers 0 to 4 only, counted in the list that is called 'layers'.",
            target_modules=ATTENTION,
            layers_to_transform=[0, 1, 2, 3, 4],
            layers_pattern="layers",
        ),
        "custom-init": _preset(
            "Custom start",
            "A wider bank and sharper first choices than the defaults 0.02 and 0.1.",
            target_modules=ATTENTION,
            init_vector_bank_bound=0.05,
            init_logits_std=0.5,
        ),
        "bias-and-head": _preset(
            "Biases and head",
            "Trains all biases and a copy of the output head too, which is stored whole.",
            target_modules=ATTENTION,
            bias="all",
            modules_to_save=["lm_head"],
        ),
        "regex": _preset(
            "Targets by expression",
            "A regular expression for the whole name picks queries and values of every layer.",
            target_modules=r".*\.layers\.\d+\.self_attn\.(q|v)_proj",
        ),
        "trainer": _preset(
            "Full training run",
            "All linear layers with dropout, and arguments for a run on the HF Trainer.",
            training={
                "num_train_epochs": 3,
                "per_device_train_batch_size": 8,
                # One rate for bank and logits; `train.make_optimizer` gives each its own.
                "learning_rate": 5e-3,
                "lr_scheduler_type": "linear",
                "warmup_steps": 0.06,  # a share of all steps
                "weight_decay": 0.0,
                "logging_steps": 10,
                "save_strategy": "epoch",
                "report_to": "none",
            },
            target_modules=ALL_LINEAR,
            vblora_dropout=0.05,
        ),
    }
)
"""Presets by name, in the order from simple to complete; read-only.

:meta hide-value:
"""


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ConfigError: there is none; the message lists them.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise ConfigError(f"preset={name!r}: must be one of {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]


def list_presets() -> str:
    """A line for each preset: its name and what it is for."""
    width = max(map(len, PRESETS))
    return "\n".join(f"{name:{width}}  {p.description}" for name, p in PRESETS.items())
