"""How PEFT is told to use this package's classes for VB-LoRA.

PEFT decides by two tables: PEFT_TYPE_TO_TUNER_MAPPING says which class adapts a model, saves and
loads it, PEFT_TYPE_TO_CONFIG_MAPPING which class reads its config. Importing this module leaves
both alone. `get_peft_model` and `from_pretrained` swap the VB-LoRA entries for the length of one
call, `using` for a block, `register` until `unregister`.

Models made here go on working when PEFT's own entries are back: their parameters have PEFT's
names, so that PEFT's save_pretrained and load_adapter handle them.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import nn

from vblora_lab import checkpoint
from vblora_lab.config import VBLoRAConfig, as_vblora_config
from vblora_lab.errors import CheckpointError, ConfigError, TargetError
from vblora_lab.layers import in_out_features
from vblora_lab.model import VBLoRAModel, check_adapter_name, restored_on_error
from vblora_lab.targets import resolve


class _Seam:
    """Who holds PEFT's two entries: ours while anybody asks for it, else what was there before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registered = False
        self.blocks = 0  # `using` blocks entered and not left, in all threads
        self.before: tuple[type, type] | None = None

    def change(self, *, registered: bool | None = None, blocks: int = 0) -> None:
        with self.lock:
            if registered is not None:
                self.registered = registered
            self.blocks += blocks
            ours = self.registered or self.blocks > 0
            if ours and self.before is None:
                self.before = (
                    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.VBLORA],
                    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VBLORA],
                )
                self._set(VBLoRAConfig, VBLoRAModel)
            elif not ours and self.before is not None:
                self._set(*self.before)
                self.before = None

    @staticmethod
    def _set(config_class: type, tuner_class: type) -> None:
        # In place: other modules of PEFT imported these very dictionaries.
        PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.VBLORA] = config_class
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VBLORA] = tuner_class


_seam = _Seam()


def register() -> None:
    """Make PEFT use this package's classes for VB-LoRA everywhere, until `unregister`."""
    _seam.change(registered=True)


def unregister() -> None:
    """Give PEFT its own VB-LoRA classes back. Models made meanwhile keep working."""
    _seam.change(registered=False)


@contextmanager
def using() -> Iterator[None]:
    """`register` for the length of a with block, in all threads; blocks may nest and overlap."""
    _seam.change(blocks=+1)
    try:
        yield
    finally:
        _seam.change(blocks=-1)


@contextmanager
def _without_known_warning() -> Iterator[None]:
    """PEFT asks transformers for an attribute that is deprecated there; nobody here can help it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def get_peft_model(
    model: nn.Module, config: PeftConfig, adapter_name: str = "default", **kwargs: Any
) -> PeftModel:
    """Adapt a model with VB-LoRA: peft.get_peft_model on this package's classes.

    Args:
        model: the base model; its linear layers are wrapped in place.
        config: a VBLoRAConfig, this package's or PEFT's. Never changed.
        adapter_name: name of the adapter.
        **kwargs: of peft.get_peft_model: autocast_adapter_dtype, low_cpu_mem_usage, revision.

    Returns:
        The PeftModel for config.task_type.

    Raises:
        ConfigError, TargetError: the model is as it was.
    """
    _check_is_module(model)
    if isinstance(model, PeftModel):
        raise TargetError(
            f"model is a {type(model).__name__} already. Add another adapter with "
            "model.add_adapter(name, config), or start afresh from model.unload()."
        )
    check_adapter_name(adapter_name, model)
    config = as_vblora_config(config)
    with using(), restored_on_error(model, adapter_name), _without_known_warning():
        return peft.get_peft_model(model, config, adapter_name=adapter_name, **kwargs)


def from_pretrained(
    model: nn.Module,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    is_trainable: bool = False,
    **kwargs: Any,
) -> PeftModel:
    """Load a stored VB-LoRA adapter, written here or by PEFT, onto a base model.

    Config, names and shapes are checked before the model is touched.

    Args:
        model: the base model, or a PeftModel made here, which gets one more adapter.
        path: folder of the adapter, or its id on the Hugging Face Hub ("owner/name").
        adapter_name: name to give it.
        is_trainable: whether training is to go on; needs a file with all logits.
        **kwargs: of PeftModel.from_pretrained: torch_device, low_cpu_mem_usage, subfolder,
            revision, token, cache_dir and so on.

    Returns:
        The PeftModel, in eval mode unless is_trainable. For a PeftModel, that same one; its active
        adapter stays active.

    Raises:
        CheckpointError: no adapter there, one of another method, a damaged file, one that doesn't
            fit the model, or one that can't be trained.
        ConfigError: the name is taken.
        TargetError: the config names no layers of this model. In any case the model is as it was.
    """
    hub = {key: kwargs.pop(key, None) for key in ("subfolder", "revision", "token", "cache_dir")}
    _check_is_module(model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    check_adapter_name(adapter_name, base)
    if isinstance(model, PeftModel):
        _check_accepts(model, adapter_name)
    folder = _local_folder(path, hub)
    config = _checked_config(base, folder, is_trainable)
    with using(), restored_on_error(base, adapter_name), _without_known_warning():
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name, is_trainable=is_trainable, **kwargs)
            return model
        return PeftModel.from_pretrained(
            model, folder, adapter_name, is_trainable=is_trainable, config=config, **kwargs
        )


def _local_folder(path: str | os.PathLike[str], hub: dict[str, Any]) -> str:
    """The adapter's folder on this machine; what looks like a Hub id is downloaded."""
    folder = Path(path)
    subfolder = hub.pop("subfolder") or ""
    looks_like_hub_id = (
        isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~"))
    )
    if not folder.exists() and looks_like_hub_id:
        files = [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME]
        wanted = [f"{subfolder}/{file}" if subfolder else file for file in files]
        try:
            folder = Path(snapshot_download(str(path), allow_patterns=wanted, **hub))
        except (OSError, ValueError) as error:  # no network, no such repository, no valid id
            raise CheckpointError(
                f"there is no folder {path}, and the Hugging Face Hub gave no adapter of that "
                f"name ({type(error).__name__})."
            ) from error
    return str(folder / subfolder)


def _check_is_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"model={model!r}: must be a torch.nn.Module, such as the base model that "
            "AutoModelForCausalLM.from_pretrained gives."
        )


def _check_accepts(model: PeftModel, adapter_name: str) -> None:
    if not isinstance(model.base_model, VBLoRAModel):
        raise TargetError(
            f"model is a PeftModel on {type(model.base_model).__name__}, not one made by "
            "vblora_lab; load onto model.unload(), or with model.load_adapter."
        )
    if adapter_name in model.peft_config:
        there = ", ".join(map(repr, model.peft_config))
        raise ConfigError(
            f"adapter_name={adapter_name!r}: is taken; the model has {there}. Give another name, "
            "or call model.delete_adapter first."
        )


def _checked_config(base: nn.Module, folder: str, is_trainable: bool) -> VBLoRAConfig:
    """The config of a stored adapter, once its file is known to fit the base model."""
    config = checkpoint.read_config(folder)
    shapes = checkpoint.read_shapes(folder)
    if is_trainable and checkpoint.is_topk_format(shapes):
        raise CheckpointError(
            f"{folder} can't be trained: it stores only the top {config.topk} logits of each "
            "sub-vector (save_only_topk_weights=True). Load it with is_trainable=False, or train "
            "from a file with all logits."
        )
    config.inference_mode = True  # a stored adapter: names that match nothing are dropped
    config, targets = resolve(base, config)
    config.inference_mode = not is_trainable
    features = {name: in_out_features(module) for name, module in targets.items()}
    checkpoint.check_shapes(shapes, config, features, where=folder)
    return config
