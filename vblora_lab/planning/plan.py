"""plan(): what a config would do to a model, found without touching it.

Only names, shapes and dtypes are read, so a model on the meta device will do: a model of 70 billion
parameters can be planned where it could never be loaded. What would stop the injection is part of
the answer; the checks are those of `targets.match_targets`, the sizes those of `tuner.sizes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft import PeftConfig
from torch import nn

from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.planning import views
from vblora_lab.planning.others import Others, once, others_of
from vblora_lab.planning.record import Memory, PlanRecord, Skipped, Target
from vblora_lab.planning.worth import dearer_than_lora
from vblora_lab.tuner import sizes
from vblora_lab.tuner.config import VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.modules import base_of
from vblora_lab.tuner.precision import FLOAT16, INT8
from vblora_lab.tuner.problems import Problem, vector_lengths
from vblora_lab.tuner.targets import TargetMatch, match_targets
from vblora_lab.tuner.wrapped import LinearLayer, adapter_dtype, in_out_features

Features = list[tuple[int, int]]
OF_CONFIG = ("r", "num_vectors", "vector_length", "topk", "save_only_topk_weights")
ADAMW_STATES = 2  # AdamW keeps two running means per trained parameter, in its dtype


class Plan(PlanRecord):
    """What a config would do to a model: a `PlanRecord` that shows itself as text and as HTML."""

    def __str__(self) -> str:
        return views.as_text(self)

    def _repr_html_(self) -> str:
        return views.as_html(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """IPython's terminals show the text, and not the line that `repr` makes of all modules."""
        printer.text(str(self))


def plan(
    model: nn.Module,
    config: PeftConfig,
    *,
    batch_size: int | None = None,
    length: int | None = None,
) -> Plan:
    """What `get_peft_model(model, config)` would do, without doing it.

    Args:
        model: the base model, or a PeftModel on it; never changed. Only names, shapes and dtypes
            are read, so its parameters may be on the meta device.
        config: a VBLoRAConfig, this package's or PEFT's. Never changed.
        batch_size, length: count the activations of training on a batch of so many texts of so
            many tokens too, for a model of transformers. This runs a pass on tensors that have
            shapes and no numbers; it takes a moment, and practically no memory.

    Returns:
        The plan. A config that doesn't fit this model gives one too, with `plan.problems`.

    Raises:
        ConfigError: the config is for another method, or has a value that can't be meant at all;
            or one of batch_size and length is given without the other.
        TargetError: model is no torch module, or its activations can't be counted.
    """
    _check_batch(batch_size, length)
    model = _checked_base(model)
    found = match_targets(model, as_vblora_config(config))
    config = found.config

    targets = tuple(_target(name, layer, config) for name, layer in found.targets.items())
    kinds = {name: type(model.get_submodule(name)).__name__ for name in found.left_out}
    skipped = tuple(Skipped(name, kinds[name], why) for name, why in found.left_out.items())
    features = [(t.in_features, t.out_features) for t in targets if t.tiles_A]
    float_bytes = _float_bytes(found.targets.values())
    bank = config.num_vectors * config.vector_length
    logits = sizes.count_sub_vectors(config, features) * config.num_vectors
    others = others_of(model, config, found.targets.values())
    other_parameters = sum(p.numel() for p in others.trained)
    stored = _stored_bytes(config, features, float_bytes)
    memory = _memory(model, others, adapter=(bank + logits) * float_bytes)
    activations = _activations(model, config, batch_size, length, fits=not found.problems)
    return Plan(
        model=type(model).__name__,
        **{name: getattr(config, name) for name in OF_CONFIG},
        targets=targets,
        skipped=skipped,
        problems=found.problems,
        cautions=(*found.cautions, *_dearer(found, features, float_bytes)),
        vector_lengths=tuple(vector_lengths(found.targets.values())) if targets else (),
        base_parameters=sum(p.numel() for p in model.parameters()),
        bank_parameters=bank,
        logits_parameters=logits,
        other_parameters=other_parameters,
        **{form: others.stored_bytes + of_vblora for form, of_vblora in stored.items()},
        other_bytes=others.stored_bytes,
        lora_parameters=sizes.lora_parameters(features, config.r) + other_parameters,
        lora_bytes=sizes.lora_stored_bytes(features, config.r) + others.stored_bytes,
        memory=Memory(**memory, **activations),
    )


def _stored_bytes(config: VBLoRAConfig, features: Features, float_bytes: int) -> dict[str, Any]:
    """Bytes of bank and logits in each stored form, by the names of the plan's fields."""
    full, topk = (
        sizes.vblora_stored_bytes(config, features, only_topk=only, float_bytes=float_bytes)
        for only in (False, True)
    )
    float16, int8 = (sizes.bytes_saved_in(config, features, form) for form in (FLOAT16, INT8))
    return {
        "full_bytes": full,
        "topk_bytes": topk,
        "float16_bytes": float16,
        "int8_bytes": int8,
    }


def _checked_base(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TargetError(f"model={model!r}: must be a torch.nn.Module, on any device.")
    return base_of(model)


def _check_batch(batch_size: int | None, length: int | None) -> None:
    if (batch_size is None) != (length is None):
        missing = "batch_size" if batch_size is None else "length"
        raise ConfigError(
            f"{missing} isn't given: activations are those of batch_size x length tokens; give "
            "both or neither.",
            field=missing,
        )


def _memory(model: nn.Module, others: Others, adapter: int) -> dict[str, Any]:
    """Fields of `Memory`, whatever the batch. adapter: bytes of bank and logits."""
    trained = adapter + sum(p.nbytes for p in others.trained)
    return {
        "weights": sum(t.nbytes for t in once([*model.parameters(), *model.buffers()])),
        "adapter": adapter + sum(p.nbytes for p in others.copies),
        "gradients": trained,
        "optimizer": ADAMW_STATES * trained,
    }


def _activations(
    model: nn.Module, config: VBLoRAConfig, batch_size: int | None, length: int | None, fits: bool
) -> dict[str, Any]:
    """Fields of `Memory`, if activations were asked for."""
    if batch_size is None or length is None:
        return {}
    # Here, since tensors without memory take a second to import, and few plans need them.
    from vblora_lab.planning.activations import activation_bytes

    count = activation_bytes(model, config, batch_size, length) if fits else None
    return {"batch": (batch_size, length), "activations": count}


def _dearer(found: TargetMatch, features: Features, float_bytes: int) -> list[Problem]:
    return [] if found.problems else dearer_than_lora(found.config, features, float_bytes)


def _target(name: str, layer: LinearLayer, config: VBLoRAConfig) -> Target:
    size_in, size_out = in_out_features(layer)
    length, r = config.vector_length, config.r
    divides = size_in % length == 0 and size_out % length == 0
    sub_vectors = sizes.count_sub_vectors(config, [(size_in, size_out)]) if divides else 0
    return Target(
        name=name,
        kind=type(layer).__name__,
        in_features=size_in,
        out_features=size_out,
        tiles_A=(r, size_in // length) if divides else None,
        tiles_B=(size_out // length, r) if divides else None,
        sub_vectors=sub_vectors,
        logits=sub_vectors * config.num_vectors,
        lora_parameters=sizes.lora_parameters([(size_in, size_out)], r),
    )


def _float_bytes(layers: Iterable[LinearLayer]) -> int:
    """Bytes of a number of the adapter; the bank ends up in the dtype of the last layer's."""
    dtypes = [adapter_dtype(layer.weight.dtype) for layer in layers]
    return dtypes[-1].itemsize if dtypes else sizes.FLOAT32_BYTES
