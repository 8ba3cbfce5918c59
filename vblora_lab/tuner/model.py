"""VBLoRAModel: puts VB-LoRA layers into a model and owns the bank that they share.

Everything that can be wrong is found before the first layer is replaced (see `targets`); should
something still fail on the way, the model is put back as it was.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, onload_layer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.save_and_load import _filter_state_dict_for_adapter_name
from torch import Tensor, nn

from vblora_lab.errors import (
    CheckpointError,
    ConfigError,
    MergeError,
    TargetError,
    UnsupportedError,
)
from vblora_lab.speed.pool import MatrixPool
from vblora_lab.tuner import folders, formats, sizes
from vblora_lab.tuner.banks import FINGERPRINT_NAME, VectorBanks, write_fingerprint
from vblora_lab.tuner.config import VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.layer import NO_ADAPTER, Linear, VBLoRALayer
from vblora_lab.tuner.modules import head_stored_whole, own_modules
from vblora_lab.tuner.targets import DEFAULT_TARGETS, resolve
from vblora_lab.tuner.wrapped import adapter_dtype, device_of


def adapted_layers(model: nn.Module, adapter_name: str = "default") -> dict[str, VBLoRALayer]:
    """The layers that carry an adapter, by their names in the base model, in its order."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    if isinstance(model, PeftModel):
        model = model.base_model
    if isinstance(model, VBLoRAModel) and adapter_name in model.pool.layers:
        return cast(dict[str, VBLoRALayer], dict(model.pool.layers[adapter_name]))
    if isinstance(model, BaseTuner):
        model = model.model
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, VBLoRALayer) and adapter_name in module.topk
    }


class _Configs(dict[str, PeftConfig]):
    """The configs by adapter. PeftModel asks for one in every pass, even when none is left."""

    def __missing__(self, adapter_name: str) -> PeftConfig:
        if self:
            raise KeyError(adapter_name)
        return VBLoRAConfig(inference_mode=True)  # of no adapter: the pass is the base model's


class VBLoRAModel(BaseTuner):
    """A model with VB-LoRA adapters. Usually made by `vblora_lab.get_peft_model`.

    Each adapted layer computes W x + b + the sum over active adapters of B A dropout(x), where A
    and B are mixed from the layer's logits and the bank that all of them share (see `admixture`).

    Args:
        model: the base model; its linear layers are replaced in place.
        peft_config: the first adapter's config, or a dict with it under its name. Copied.
        adapter_name: name of the first adapter.

    Attributes:
        vblora_vector_bank: the banks (num_vectors, vector_length) by adapter name; every layer
            holds this same dictionary.

    Raises:
        ConfigError, TargetError: before anything is changed.
    """

    uses_shared_state = True
    prefix = "vblora_"
    tuner_layer_cls = VBLoRALayer
    target_module_mapping = cast(dict[str, list[str]], DEFAULT_TARGETS)

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        **kwargs: Any,
    ) -> None:
        if any(isinstance(module, VBLoRALayer) for module in model.modules()):
            raise TargetError(
                "this model already carries VB-LoRA adapters. Add another with "
                "peft_model.add_adapter(name, config), or start afresh from peft_model.unload()."
            )
        if not isinstance(peft_config, dict):
            peft_config = {adapter_name: peft_config}
        # Not the caller's dict: inject_adapter puts a copy of the config there.
        super().__init__(model, _Configs(peft_config), adapter_name, **kwargs)
        # On the base model, since `generate` calls that and not the tuner.
        self._pass_hooks = [
            model.register_forward_pre_hook(self._begin_pass),
            model.register_forward_hook(self._end_pass, always_call=True),
        ]

    # --- one admixture per pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward pass, with its adapters."""
        with self.pool.held():  # PeftModel does so too; this is for whoever calls the tuner
            return super().forward(*args, **kwargs)

    def _begin_pass(self, *_: Any) -> None:
        several = self._adapters_of_batch  # one per sample: each layer adds them up by itself
        self.pool.begin_pass(several or self.active_adapters, may_fold=not several)

    def _end_pass(self, *_: Any) -> None:
        self.pool.end_pass()

    # --- injection

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.vblora_vector_bank = VectorBanks()
        self.pool = MatrixPool()
        self._adapters_of_batch: list[str] = []

    def _init_vblora_vector_bank(self, config: VBLoRAConfig, adapter_name: str) -> None:
        """Draw the bank of an adapter anew, uniform in [-bound, bound], on the CPU in float32."""
        bank = torch.empty(config.num_vectors, config.vector_length)
        nn.init.uniform_(bank, -config.init_vector_bank_bound, config.init_vector_bank_bound)
        self.vblora_vector_bank[adapter_name] = nn.Parameter(bank)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Check the config of this adapter against the model, then inject it, or change nothing.

        See PEFT's BaseTuner.inject_adapter for the arguments.

        Raises:
            ConfigError, TargetError: what doesn't fit, and what would.
        """
        targeted = list(self.targeted_module_names)
        try:
            check_adapter_name(adapter_name, model)
            # A copy, so that what is filled in here never shows in the caller's config.
            config, targets = resolve(model, as_vblora_config(self.peft_config[adapter_name]))
            self.peft_config[adapter_name] = config
            with restored_on_error(model, adapter_name):
                # Before all logits and once, so that a seed gives one bank whatever the targets.
                self._init_vblora_vector_bank(config, adapter_name)
                device = device_of(next(iter(targets.values())))
                bank = self.vblora_vector_bank[adapter_name].detach()
                # PEFT asks for it in two ways; and a base without memory gets such an adapter.
                without_memory = low_cpu_mem_usage or bank.is_meta or device.type == "meta"
                if not bank.is_meta:
                    bank = bank.to("meta" if without_memory else device)
                    self.vblora_vector_bank[adapter_name] = nn.Parameter(bank)
                # PEFT draws numbers and then forgets them; on "meta" there are none to draw.
                with torch.device("meta") if without_memory else nullcontext():
                    super().inject_adapter(
                        model,
                        adapter_name,
                        low_cpu_mem_usage=low_cpu_mem_usage,
                        state_dict=state_dict,
                    )
                self._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
                self._pool_layers(adapter_name)
            config.belongs_to(self)
        except BaseException:
            self.peft_config.pop(adapter_name, None)
            self.targeted_module_names = targeted
            if adapter_name in self.vblora_vector_bank:
                del self.vblora_vector_bank[adapter_name]
            raise

    def _pool_layers(self, adapter_name: str) -> None:
        layers = adapted_layers(self, adapter_name)
        self.pool.layers[adapter_name] = dict(layers)
        for name, layer in layers.items():
            layer.pool, layer.name_in_pool = self.pool, name

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter: its logits, its bank and its config.

        Biases that it trained keep their values, and aren't trained any more.
        """
        was_active = adapter_name in self.active_adapters
        biases = self._biases_trained_by(adapter_name) if adapter_name in self.peft_config else []
        super().delete_adapter(adapter_name)
        self.pool.drop(adapter_name)
        for bias in biases:
            bias.requires_grad_(False)
        if was_active:  # PEFT made another adapter active, and trains it
            self._train_biases_of_active()

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        with_bias = [name for name in self.peft_config if self._config_of(name).bias != "none"]
        if len(with_bias) > 1:
            raise ConfigError(
                f"bias={self._config_of(with_bias[-1]).bias!r}: another adapter of this model "
                "trains biases already, and there is only one set of them; use bias='none'."
            )

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: VBLoRAConfig,  # inject_adapter made it one
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, Linear):
            target.update_layer(adapter_name, self.vblora_vector_bank, peft_config)
            return
        layer = Linear(target, self.vblora_vector_bank, adapter_name, peft_config)
        setattr(parent, target_name, layer.train(target.training))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Bring an adapter to the dtype of the layers it adapts, but to float32 at least.

        In place: parameters keep their identity and their requires_grad.

        Args:
            adapter_name: which adapter.
            autocast_adapter_dtype: False to keep half precision where the base layer has it.
        """
        bank_is_shared = self.vblora_vector_bank.is_shared(adapter_name)
        for layer in adapted_layers(self, adapter_name).values():
            dtype = adapter_dtype(layer.base_weight().dtype, autocast_adapter_dtype)
            for name in layer.adapter_layer_names:
                if name == "vblora_vector_bank" and bank_is_shared:
                    continue  # it isn't this adapter's alone
                parameter = getattr(layer, name)[adapter_name]
                parameter.data = parameter.data.to(dtype)

    # --- merging: all layers or none

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Add adapters to the base weights in place; `unmerge_adapter` gives the old ones back.

        Args:
            adapter_names: which; the active ones if not given.
            safe_merge: look at every merged weight first, and merge none if one isn't finite.

        Raises:
            ConfigError: no adapter has that name.
            MergeError: a weight isn't finite, is quantised in a way that can't be written back, or
                is tied to that of another module. Nothing was merged.
        """
        self._check_mergeable(adapter_names, safe_merge)
        super().merge_adapter(adapter_names)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:  # PEFT's annotation; it returns the base model
        if merge:
            self._check_mergeable(adapter_names, safe_merge)
        # A merged layer holds the weight of before. Nobody else holds the layer: each is gone as
        # soon as its base layer takes its place, and memory never has all weights twice.
        self.pool.layers.clear()
        base_model = super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, adapter_names=adapter_names
        )
        for hook in self._pass_hooks:
            hook.remove()
        return base_model

    def _check_mergeable(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        """Find before the first merge what would stop a later one, or give a wrong result."""
        if isinstance(adapter_names, str):
            raise ConfigError(f"adapter_names={adapter_names!r}: must be a list of names.")
        for name in adapter_names or ():
            self._config_of(name)
        layers = {
            path: layer
            for path, layer in self.model.named_modules()
            if isinstance(layer, Linear) and layer.adapters_to_merge(adapter_names)
        }
        for path, layer in layers.items():
            if reason := layer.why_not_mergeable():
                raise MergeError(f"can't merge into {path}: {reason}")
        _check_untied(self.model, layers)
        if safe_merge:
            for path, layer in layers.items():
                try:
                    with onload_layer(layer):  # accelerate may have put the weight aside
                        layer.merged_weight(adapter_names, safe_merge=True)
                except MergeError as error:
                    raise MergeError(f"{path}: {error}") from error

    # --- several adapters at once

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active: the update of a layer is the sum of theirs.

        Biases of the base model are trained only while an adapter that asks for it is active.
        (PEFT leaves them trainable, so that they would change with the training of another
        adapter, which doesn't store them.)

        Args:
            adapter_name: one name or several.
            inference_mode: leave them frozen; else they are trained.

        Raises:
            ConfigError: no adapter has that name; the active ones stay.
        """
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            self._config_of(name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._train_biases_of_active(inference_mode)

    def _train_biases_of_active(self, inference_mode: bool = False) -> None:
        for name in self.peft_config:
            for bias in self._biases_trained_by(name):
                bias.requires_grad_(name in self.active_adapters and not inference_mode)

    def _biases_trained_by(self, adapter: str) -> list[nn.Parameter]:
        """The biases of the base model that an adapter trains in place, as its config.bias says."""
        mode = self._config_of(adapter).bias
        if mode == "none":
            return []
        ending = "bias" if mode == "all" else "base_layer.bias"
        apart: tuple[str, ...] = ()  # copies, and originals of which this adapter has a copy
        for name, module in self.model.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                apart += (f"{name}.modules_to_save.",)
                apart += (f"{name}.",) if adapter in module.modules_to_save else ()
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if f".{name}".endswith(f".{ending}") and not name.startswith(apart)
        ]

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not for VB-LoRA.

        Raises:
            UnsupportedError: always, and says what to do instead.
        """
        raise UnsupportedError(
            "add_weighted_adapter: a weighted sum of VB-LoRA adapters is no VB-LoRA adapter, since "
            "each mixes the vectors of its own bank. To use several at equal weight, activate "
            'them together: model.base_model.set_adapter(["a", "b"]) sums their updates. For '
            "other weights, make each a LoRA adapter (vblora_lab.export_lora) and combine those "
            "with add_weighted_adapter of peft.LoraModel."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Within, layers read `adapter_names`: one adapter, or "__base__", per sample.

        Raises:
            ConfigError: in training mode, while merged, or for an adapter that isn't there.
        """
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            # PEFT calls this around `forward` and around the many passes of `generate`.
            with self.pool.held():
                yield
            return
        if self.training:
            raise ConfigError("adapter_names: a mixed batch is for inference; call model.eval().")
        if any(layer.merged for layer in self.modules() if isinstance(layer, VBLoRALayer)):
            raise ConfigError("adapter_names: adapters are merged; call unmerge_adapter() first.")
        unknown = sorted(set(adapter_names) - {NO_ADAPTER, *self.peft_config})
        if unknown:
            raise ConfigError(
                f"adapter_names: no adapter is called {', '.join(map(repr, unknown))}; there are "
                f"{', '.join(map(repr, self.peft_config))}, and {NO_ADAPTER!r} for none."
            )
        hook = partial(_pass_adapter_names, list(adapter_names))
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, (VBLoRALayer, AuxiliaryTrainingWrapper))
        ]
        self._adapters_of_batch = [name for name in self.peft_config if name in adapter_names]
        try:
            with self.pool.held():
                yield
        finally:
            self._adapters_of_batch = []
            for handle in handles:
                handle.remove()

    # --- sizes

    def get_nb_savable_parameters(self, adapter: str = "default") -> tuple[int, int]:
        """Numbers that storing an adapter takes, counted in float32: (bank and logits, others).

        A bank that isn't the adapter's own isn't stored. The others are biases, modules_to_save,
        and the base weight of an output head that is adapted by its name, which PEFT stores.
        Small integers of the top-k format count as the part of a float32 that they take.
        """
        config = self._config_of(adapter)
        vblora = self._vblora_bytes(adapter, config.save_only_topk_weights, float_bytes=4)
        others = sum(tensor.numel() for tensor in self._other_stored_tensors(adapter))
        return vblora // 4, others

    def print_savable_parameters(self, adapter: str = "default") -> None:
        """Print what `get_nb_savable_parameters` counts."""
        vblora, others = self.get_nb_savable_parameters(adapter)
        print(
            f"VB-LoRA params to-be-saved (float32-equivalent): {vblora:,d} "
            f"|| total params to-be-saved: {vblora + others:,d}"
        )

    def stored_bytes(self, adapter: str = "default", only_topk: bool | None = None) -> int:
        """Bytes of all tensors that storing an adapter writes (the file adds a short header).

        Args:
            adapter: which adapter.
            only_topk: in the top-k format; as config.save_only_topk_weights says if not given.
        """
        if only_topk is None:
            only_topk = self._config_of(adapter).save_only_topk_weights
        float_bytes = self.vblora_vector_bank[adapter].element_size()
        others = sum(tensor.nbytes for tensor in self._other_stored_tensors(adapter))
        return self._vblora_bytes(adapter, only_topk, float_bytes) + others

    def lora_stored_bytes(self, adapter: str = "default") -> int:
        """Bytes of the tensors of a float32 LoRA adapter of the same rank on the same layers."""
        config = self._config_of(adapter)
        return sizes.lora_stored_bytes(self._features(adapter).values(), config.r)

    def _vblora_bytes(self, adapter: str, only_topk: bool, float_bytes: int) -> int:
        return sizes.vblora_stored_bytes(
            self._config_of(adapter),
            self._features(adapter).values(),
            only_topk=only_topk,
            float_bytes=float_bytes,
            with_bank=adapter not in self.vblora_vector_bank.fingerprints,
        )

    def check_adapter_exists(self, adapter: str) -> None:
        """Raise `ConfigError` if no adapter has this name."""
        if adapter not in self.peft_config:
            there = ", ".join(map(repr, self.peft_config))
            raise ConfigError(f"no adapter is called {adapter!r}; there are {there}.")

    def _config_of(self, adapter: str) -> VBLoRAConfig:
        self.check_adapter_exists(adapter)
        return cast(VBLoRAConfig, self.peft_config[adapter])

    def _features(self, adapter: str) -> dict[str, tuple[int, int]]:
        return _features(adapted_layers(self, adapter))

    def _other_stored_tensors(self, adapter: str) -> list[Tensor]:
        # PEFT stores nothing that has another adapter's name in its key.
        others = [name for name in self.peft_config if name != adapter]
        state_dict = _filter_state_dict_for_adapter_name(self.state_dict(), others)
        config = self._config_of(adapter)
        tensors = dict(self._get_learnable_bias_state_dict(self, state_dict, config))
        for name, module in self.named_modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                prefix = f"{name}."
                inner = {
                    key.removeprefix(prefix): tensor
                    for key, tensor in state_dict.items()
                    if key.startswith(prefix)
                }
                stored = module.adapter_state_dict(adapter, inner)  # type: ignore[call-arg]
                tensors.update({prefix + key: tensor for key, tensor in stored.items()})
        head = head_stored_whole(self.model, config)
        for name, module in self.named_modules():
            if isinstance(module, VBLoRALayer) and module.get_base_layer() is head:
                whole = f"{name}.base_layer."
                tensors.update({k: t for k, t in state_dict.items() if k.startswith(whole)})
        return list(tensors.values())

    # --- files; PEFT calls these with the PeftModel

    @classmethod
    def _get_adapter_state_dict(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: VBLoRAConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        logits = {
            key: tensor
            for key, tensor in state_dict.items()
            if key.endswith(tuple(f".{name}.{adapter_name}" for name in formats.LOGITS))
        }
        result = formats.packed(logits, config.topk) if config.save_only_topk_weights else logits
        # The bank is in the state dict once per layer; the file has it once, under the model.
        bank = f"{formats.BANK_KEY}.{adapter_name}"
        result[bank] = state_dict[bank]
        result.update(cls._get_learnable_bias_state_dict(model, state_dict, config))
        return result

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        for suffix in (formats.INDICES, formats.WEIGHTS):
            if key.endswith(f".{adapter_name}{suffix}"):
                return key.removesuffix(f".{adapter_name}{suffix}") + suffix
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: VBLoRAConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        layers = adapted_layers(model, adapter_name)
        where = f"the file of {adapter_name!r}"
        others = {
            # A model that PEFT injected layers into without wrapping it has no prefix; files have.
            key if key.startswith("base_model.") else formats.LAYER_PREFIX + key: tensor.shape
            for key, tensor in model.state_dict().items()
        }
        copied = f".modules_to_save.{adapter_name}."  # with bias="all", their biases come twice
        others.update(
            {k.replace(copied, ".modules_to_save."): others[k] for k in list(others) if copied in k}
        )
        formats.check_tensors(state_dict, config, _features(layers), others, where)
        if not config.save_only_topk_weights:
            formats.check_format(state_dict, config, where)
        # The other way round it passes: HF Trainer loads its checkpoints, which hold all logits,
        # into an adapter that is to be stored in the top-k format in the end.
        banks = next(iter(layers.values())).vblora_vector_bank
        _check_bank(banks, adapter_name, state_dict, where)
        full = formats.unpacked(state_dict, config.num_vectors)
        if banks.is_shared(adapter_name):
            full.pop(formats.BANK_KEY, None)  # the very same is there, for other adapters too
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, full)

    def complete_folder(self, config: VBLoRAConfig, folder: Path) -> VBLoRAConfig:
        """Bring a folder in which PEFT just stored an adapter into its final form.

        A checkpoint of HF Trainer is for going on: it keeps all logits and the bank, even with
        save_only_topk_weights and a shared bank. Any other folder is an export, and is compact: a
        bank that the adapter only uses is left out, and a small file says which it was.

        Args:
            config: of the adapter, as the model holds it.
            folder: has the adapter's weights, in PEFT's format.

        Returns:
            The config to be written there.
        """
        name = next((name for name, own in self.peft_config.items() if own is config), None)
        weights = folder / SAFETENSORS_WEIGHTS_NAME
        if name is None or not weights.is_file():  # the adapter is deleted, or nothing is stored
            return config
        going_on = folders.is_training_checkpoint(folder, name)
        (folder / FINGERPRINT_NAME).unlink(missing_ok=True)  # of what was stored here before
        if going_on and config.save_only_topk_weights and self._put_back_logits(name, weights):
            config = copy.copy(config)
            config.save_only_topk_weights = False
        if not going_on and name in self.vblora_vector_bank.fingerprints:
            tensors = folders.read_to_rewrite(weights)
            tensors.pop(formats.BANK_KEY, None)
            folders.rewrite(weights, tensors)
            write_fingerprint(folder, self.vblora_vector_bank.fingerprint_of(name))
        return config

    def _put_back_logits(self, adapter_name: str, weights: Path) -> bool:
        """Replace the top-k format in a file by all logits, or say that it can't be done."""
        layers = adapted_layers(self, adapter_name)
        if not all(layer.logits_are_complete[adapter_name] for layer in layers.values()):
            return False  # there are no more than these
        logits = {
            f"{formats.LAYER_PREFIX}{layer_name}.{name}": getattr(layer, name)[adapter_name].data
            for layer_name, layer in layers.items()
            for name in formats.LOGITS
        }
        config = self._config_of(adapter_name)
        stored = folders.read_to_rewrite(weights)
        if not self._is_top_k_of(stored, logits, adapter_name):
            warnings.warn(
                f"{weights} keeps only the top {config.topk} logits, since this process doesn't "
                "have them all; training can't go on from there. Set save_only_topk_weights=False "
                "while training.",
                stacklevel=2,
            )
            return False
        suffixes = (formats.INDICES, formats.WEIGHTS)
        rest = {key: tensor for key, tensor in stored.items() if not key.endswith(suffixes)}
        folders.rewrite(weights, {**rest, **logits})
        return True

    def _is_top_k_of(
        self, stored: Mapping[str, Tensor], logits: Mapping[str, Tensor], adapter_name: str
    ) -> bool:
        """Whether a file was made of these logits. Not so where a process holds but a part of
        each parameter (FSDP, ZeRO-3), or where somebody saved another state dict.
        """
        config = self._config_of(adapter_name)
        shapes = formats.expected_shapes(config, self._features(adapter_name), only_topk=False)
        if any(type(t) is not Tensor or t.shape != shapes[key] for key, t in logits.items()):
            return False
        return all(
            key in stored and torch.equal(stored[key], tensor.to("cpu"))
            for key, tensor in formats.packed(logits, config.topk).items()
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Configs come out of a deepcopy or a pickle without the model that they belong to.
        super().__setstate__(state)
        for config in self.peft_config.values():
            cast(VBLoRAConfig, config).belongs_to(self)


def _check_bank(
    banks: VectorBanks, adapter_name: str, state_dict: Mapping[str, Tensor], where: str
) -> None:
    """A file may lack the bank, or hold another one, just where that does no harm.

    Raises:
        CheckpointError: the adapter would be left with a random bank, or a load into one adapter
            would change others.
    """
    bank = state_dict.get(formats.BANK_KEY)
    if bank is None and adapter_name not in banks.fingerprints:
        raise CheckpointError(
            f"{where} doesn't fit this model: {formats.BANK_KEY} is missing. If the adapter "
            "was trained on the bank of another, load it with vblora_lab.from_pretrained(model, "
            "folder, bank=...)."
        )
    if bank is not None and banks.is_shared(adapter_name):
        held = banks[adapter_name]
        if not torch.equal(bank.to(held.device, held.dtype), held):
            raise CheckpointError(
                f"{where} has another bank than the one that {adapter_name!r} shares with other "
                "adapters of this model, and would change them too. Load it under another name."
            )


def _features(layers: Mapping[str, VBLoRALayer]) -> dict[str, tuple[int, int]]:
    return {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}


def _check_untied(model: nn.Module, layers: Mapping[str, Linear]) -> None:
    """Raise `MergeError` if merging into these layers would change what other modules compute.

    Args:
        model: all of the base model.
        layers: those to merge into, by a name that they have in it.
    """
    layer_of = {layer.base_weight(): layer for layer in layers.values()}
    path_of = {layer: path for path, layer in layers.items()}
    if len(layer_of) < len(layers):
        shared = next(la for la in layers.values() if layer_of[la.base_weight()] is not la)
        raise MergeError(_tied(path_of[shared], path_of[layer_of[shared.base_weight()]]))
    # A module may have several names; the base layer is reached through its adapter under each.
    every = list(model.named_modules(remove_duplicate=False))
    within = {layer: tuple(f"{path}." for path, m in every if m is layer) for layer in path_of}
    for path, module in every:
        for parameter in module.parameters(recurse=False):
            layer = layer_of.get(cast(nn.Parameter, parameter))
            if layer is not None and not path.startswith(within[layer]):
                raise MergeError(_tied(path_of[layer], path))


def _tied(layer: str, other: str) -> str:
    return (
        f"can't merge into {layer}: {other.removesuffix('.base_layer')} uses the same weight, and "
        "would change with it. Keep the adapter unmerged, or untie the two in the base model "
        f"before adapting it: {layer}.weight = nn.Parameter({layer}.weight.detach().clone()), and "
        "config.tie_word_embeddings = False where the config says True."
    )


def check_adapter_name(name: str, model: nn.Module) -> None:
    """Raise `ConfigError` for a name that would get lost among the keys of the model."""
    reserved = {NO_ADAPTER, *dir(VectorBanks()), *dir(nn.ModuleDict())}
    if not isinstance(name, str) or not name or "." in name or name in reserved:
        raise ConfigError(
            f"adapter_name={name!r}: must be a word without dots, and none that a parameter "
            "dictionary uses itself (such as 'keys' or 'training')."
        )
    if any(name in module_name.split(".") for module_name in own_modules(model)):
        # When PEFT saves an adapter, it drops each key that has another adapter's name in it.
        raise ConfigError(
            f"adapter_name={name!r}: is part of a module's name in this model, whose weights PEFT "
            f"would take for this adapter's; use another, such as {name + '_adapter'!r}."
        )


def _pass_adapter_names(
    names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: tell a layer which adapter each row of its input is for."""
    rows = args[0].shape[0]
    if rows % len(names):
        raise ConfigError(f"adapter_names: {len(names)} names for a batch of {rows} samples.")
    # Beam search repeats each sample, and some models flatten (batch, length) into rows: either
    # way the rows of one sample stay together.
    repeated = [name for name in names for _ in range(rows // len(names))]
    if isinstance(module, ModulesToSaveWrapper):  # of which each adapter may have a copy or none
        repeated = [n if n in module.modules_to_save else NO_ADAPTER for n in repeated]
    return args, {**kwargs, "adapter_names": repeated}


@contextmanager
def restored_on_error(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """If the block fails, take back whatever it did to add an adapter to a base model."""
    modules = {module: dict(module._modules) for module in model.modules()}
    adapted = set(adapted_layers(model, adapter_name).values())
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    configs = dict(model.__dict__.get("peft_config", {}))
    of_passes: tuple[dict[int, Any], ...] = (
        model._forward_pre_hooks,
        model._forward_hooks,
        model._forward_hooks_always_called,
    )
    hooks = [dict(each) for each in of_passes]
    try:
        yield
    except BaseException:
        for module, children in modules.items():
            if isinstance(module, VBLoRALayer) and module not in adapted:
                module.delete_adapter(adapter_name)
                module.pool.layers.pop(adapter_name, None)
            module._modules.clear()
            module._modules.update(children)
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        for each, before in zip(of_passes, hooks, strict=True):
            each.clear()
            each.update(before)
        if adapter_name not in configs:
            model.__dict__.get("peft_config", {}).pop(adapter_name, None)
        if not configs:
            model.__dict__.pop("peft_config", None)
        raise
