"""What storing an adapter that is in a model takes: its tensors, and their sizes."""

from __future__ import annotations

from typing import cast

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.save_and_load import _filter_state_dict_for_adapter_name
from torch import Tensor

from vblora_lab.tuner import sizes
from vblora_lab.tuner.adapted import adapted_layers, features
from vblora_lab.tuner.banks import VectorBanks
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import VBLoRALayer
from vblora_lab.tuner.modules import head_stored_whole


def vblora_bytes(
    tuner: BaseTuner,
    adapter: str,
    only_topk: bool | None = None,
    float_bytes: int | None = None,
) -> int:
    """Bytes of the logits of an adapter and, if it owns one, of its bank.

    Args:
        tuner: the `VBLoRAModel` that holds the adapter.
        adapter: which adapter.
        only_topk: in the top-k format; as config.save_only_topk_weights says if not given.
        float_bytes: size of one number; that of the adapter's if not given.
    """
    config = cast(VBLoRAConfig, tuner.peft_config[adapter])
    banks = cast(VectorBanks, tuner.vblora_vector_bank)
    return sizes.vblora_stored_bytes(
        config,
        features(adapted_layers(tuner, adapter)).values(),
        only_topk=only_topk,
        float_bytes=banks[adapter].element_size() if float_bytes is None else float_bytes,
        with_bank=adapter not in banks.fingerprints,
    )


def lora_bytes(tuner: BaseTuner, adapter: str) -> int:
    """Bytes of a float32 LoRA adapter of the same rank on the same layers."""
    config = cast(VBLoRAConfig, tuner.peft_config[adapter])
    return sizes.lora_stored_bytes(features(adapted_layers(tuner, adapter)).values(), config.r)


def other_tensors(tuner: BaseTuner, adapter: str) -> list[Tensor]:
    """What is stored beside bank and logits.

    These are biases, modules_to_save, and the base weight of an output head that is adapted by its
    name, which PEFT stores.
    """
    # PEFT stores nothing that has another adapter's name in its key.
    others = [name for name in tuner.peft_config if name != adapter]
    state_dict = _filter_state_dict_for_adapter_name(tuner.state_dict(), others)
    config = cast(VBLoRAConfig, tuner.peft_config[adapter])
    tensors = dict(tuner._get_learnable_bias_state_dict(tuner, state_dict, config))
    head = head_stored_whole(tuner.model, config)
    for name, module in tuner.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            inner = {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in state_dict.items()
                if key.startswith(f"{name}.")
            }
            stored = module.adapter_state_dict(adapter, inner)  # type: ignore[call-arg]
            tensors.update({f"{name}.{key}": tensor for key, tensor in stored.items()})
        elif isinstance(module, VBLoRALayer) and module.get_base_layer() is head:
            whole = f"{name}.base_layer."
            tensors.update({k: t for k, t in state_dict.items() if k.startswith(whole)})
    return list(tensors.values())
