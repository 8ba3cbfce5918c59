"""VBLoRAModel: puts VB-LoRA layers into a model and owns the bank that they share.

Most methods are those that PEFT calls. Whatever can be wrong is found before the first layer is
replaced, merged or loaded into (see `targets`, `merging`, `loading`); should an injection still
fail on the way, the model is put back as it was (see `injection`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from vblora_lab.errors import ConfigError, TargetError, UnsupportedError
from vblora_lab.speed.pool import MatrixPool, no_graph_of_its_own
from vblora_lab.tuner import formats, saving, sizes, stored
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.banks import VectorBanks
from vblora_lab.tuner.biases import check_one_set, train_biases, trained_biases
from vblora_lab.tuner.config import VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.injection import (
    Configs,
    cast_adapter,
    check_adapter_name,
    place_bank,
    restored_on_error,
)
from vblora_lab.tuner.layer import Linear, VBLoRALayer
from vblora_lab.tuner.loading import checked_state_dict
from vblora_lab.tuner.merging import check_mergeable, merges_restored_on_error, uninterrupted
from vblora_lab.tuner.mixed_batch import mixed_batch
from vblora_lab.tuner.modules import flags_of_copies_kept
from vblora_lab.tuner.of_one import of_one
from vblora_lab.tuner.sharded import cut_alike, gathered, mixes_by_layer
from vblora_lab.tuner.siblings import join_layers, part_layers
from vblora_lab.tuner.starts import begin_as_asked, copy_adapter, source_of_reference
from vblora_lab.tuner.targets import DEFAULT_TARGETS, resolve
from vblora_lab.tuner.wrapped import device_of


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

    Raises ConfigError or TargetError before anything is changed.
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
        super().__init__(model, Configs(peft_config), adapter_name, **kwargs)
        # As transformers marks them. Looked for once: a model has hundreds of modules.
        self._again = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        # On the base model, since `generate` calls that and not the tuner.
        self._pass_hooks = [
            model.register_forward_pre_hook(self._begin_pass),
            model.register_forward_hook(self._end_pass, always_call=True),
        ]

    # --- one admixture per pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward pass, with its adapters."""
        with self.pool.held():  # PeftModel does so too; this is for direct calls of the tuner
            return super().forward(*args, **kwargs)

    @no_graph_of_its_own
    def _begin_pass(self, *_: Any) -> None:
        if not mixes_by_layer(self.model, self.vblora_vector_bank):
            again = torch.is_grad_enabled() and any(m.gradient_checkpointing for m in self._again)
            self.pool.begin_pass(self.active_adapters, hand_out=not again)

    def _end_pass(self, *_: Any) -> None:
        self.pool.end_pass()

    # --- injection

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.pool = MatrixPool()
        self.vblora_vector_bank = VectorBanks(self.pool)

    def _init_vblora_vector_bank(self, config: VBLoRAConfig, adapter_name: str) -> None:
        """Draw an adapter's bank, uniform in [-bound, bound], on the CPU in float32."""
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

        See PEFT's BaseTuner.inject_adapter for the arguments. Raises ConfigError or TargetError for
        what doesn't fit, with what would.
        """
        targeted = list(self.targeted_module_names)
        try:
            check_adapter_name(adapter_name, model)
            source = source_of_reference(self.peft_config, adapter_name)
            # A copy, so that what is filled in here never shows in the caller's config.
            config, targets = resolve(model, as_vblora_config(self.peft_config[adapter_name]))
            self.peft_config[adapter_name] = config
            with restored_on_error(model, adapter_name):
                # Before all logits and once, so that a seed gives one bank whatever the targets.
                self._init_vblora_vector_bank(config, adapter_name)
                device = device_of(next(iter(targets.values())))
                banks = self.vblora_vector_bank
                on_meta = place_bank(banks, adapter_name, device, low_cpu_mem_usage)
                # PEFT draws numbers and then forgets them; on "meta" there are none to draw.
                with torch.device("meta") if on_meta else nullcontext():
                    super().inject_adapter(
                        model,
                        adapter_name,
                        low_cpu_mem_usage=low_cpu_mem_usage,
                        state_dict=state_dict,
                    )
                self._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
                self._pool_layers(adapter_name, layers := adapted_layers(self, adapter_name))
                if config.inference_mode:  # PEFT would train its biases nevertheless
                    train_biases(model, {adapter_name: config}, ())
                elif source is None:
                    begin_as_asked(self, adapter_name)
                copy_adapter(layers, banks, source, adapter_name)
            config.belongs_to(self)
        except BaseException:
            self.peft_config.pop(adapter_name, None)
            self.targeted_module_names = targeted
            if adapter_name in self.vblora_vector_bank:
                del self.vblora_vector_bank[adapter_name]
            raise

    def _pool_layers(self, adapter_name: str, layers: dict[str, VBLoRALayer]) -> None:
        self.pool.layers[adapter_name] = dict(layers)
        join_layers(self.model, self.pool, layers)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter: its logits, its bank and its config.

        Biases that it trained keep their values, and aren't trained any more.
        """
        was_active = adapter_name in self.active_adapters
        config = self.peft_config.get(adapter_name)
        bias = "none" if config is None else cast(VBLoRAConfig, config).bias
        biases = trained_biases(self.model, adapter_name, bias)
        with of_one(adapter_name) if not was_active else nullcontext():
            super().delete_adapter(adapter_name)
        self.pool.drop(adapter_name)
        for parameter in biases:
            parameter.requires_grad_(False)
        if was_active and self.active_adapters:
            # PEFT made another one active in layers alone, and trains it in any case.
            frozen = all(self.peft_config[name].inference_mode for name in self.active_adapters)
            self.set_adapter(self.active_adapters, inference_mode=frozen)

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        check_one_set(self.peft_config.values())

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
        layers = adapted_layers(self, adapter_name).values()
        cast_adapter(layers, self.vblora_vector_bank, adapter_name, autocast_adapter_dtype)

    # --- merging: all layers or none

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Add adapters to the base weights in place; `unmerge_adapter` gives the old ones back.

        Args:
            adapter_names: which; the active ones if not given.
            safe_merge: compute every merged weight first, and merge none if one isn't finite.

        Raises:
            ConfigError: no adapter has that name.
            MergeError: a weight isn't finite, is quantised in a way that can't be written back, or
                is tied to that of another module. Nothing was merged.
        """
        self._check_mergeable(adapter_names, safe_merge)
        with merges_restored_on_error(self.model):
            super().merge_adapter(adapter_names)

    def unmerge_adapter(self) -> None:
        """Give every base layer the very weight it had before the first merge."""
        with merges_restored_on_error(self.model):
            super().unmerge_adapter()

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:  # PEFT's annotation; it returns the base model
        if merge:
            self._check_mergeable(adapter_names, safe_merge)
        # A merged layer holds its old weight too. Once pool and siblings let go, it is gone when
        # its base layer takes its place, and memory never has all weights twice.
        with uninterrupted():
            part_layers(self.pool)
            base_model = super()._unload_and_optionally_merge(
                merge=merge, progressbar=progressbar, adapter_names=adapter_names
            )
            for hook in self._pass_hooks:
                hook.remove()
        return base_model

    def _check_mergeable(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        if isinstance(adapter_names, str):
            raise ConfigError(f"adapter_names={adapter_names!r}: must be a list of names.")
        for name in adapter_names or ():
            self.check_adapter_exists(name)
        check_mergeable(self.model, adapter_names, safe_merge)

    # --- several adapters at once

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active: the update of a layer is the sum of theirs.

        Biases of the base model are trained only while an adapter that asks for it is active.
        (PEFT leaves them trainable, so that they would change with the training of another
        adapter, which doesn't store them.)

        Args:
            adapter_name: one name or several.
            inference_mode: keep them frozen; otherwise they are trained.

        Raises:
            ConfigError: no adapter has that name; the active ones stay.
        """
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            self.check_adapter_exists(name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        train_biases(self.model, self.peft_config, () if inference_mode else self.active_adapters)

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

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        """Turn adapters on or off; whether they are trained stays as it is, unlike in PEFT."""
        with flags_of_copies_kept(self):
            super()._enable_adapter_layers(enabled)

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
        with mixed_batch(self, adapter_names), self.pool.held():
            yield

    # --- sizes

    def get_nb_savable_parameters(self, adapter: str = "default") -> tuple[int, int]:
        """Numbers that storing an adapter takes, counted in float32: (bank and logits, others).

        A bank that isn't the adapter's own isn't stored. The others are biases, modules_to_save,
        and the base weight of an output head that is adapted by its name, which PEFT stores.
        Small integers of the top-k format count as the part of a float32 that they take.
        """
        self.check_adapter_exists(adapter)
        vblora = stored.vblora_bytes(self, adapter, float_bytes=sizes.FLOAT32_BYTES)
        others = sum(tensor.numel() for tensor in stored.other_tensors(self, adapter))
        return vblora // sizes.FLOAT32_BYTES, others

    def print_savable_parameters(self, adapter: str = "default") -> None:
        """Print what `get_nb_savable_parameters` counts."""
        vblora, others = self.get_nb_savable_parameters(adapter)
        print(f"VB-LoRA params to-be-saved (float32-equivalent): {vblora:,d}", end=" ")
        print(f"|| total params to-be-saved: {vblora + others:,d}")

    def stored_bytes(self, adapter: str = "default", only_topk: bool | None = None) -> int:
        """Bytes of all tensors that storing an adapter writes (the file adds a short header).

        Args:
            adapter: which adapter.
            only_topk: in the top-k format; as config.save_only_topk_weights says if not given.
        """
        self.check_adapter_exists(adapter)
        others = sum(tensor.nbytes for tensor in stored.other_tensors(self, adapter))
        return stored.vblora_bytes(self, adapter, only_topk) + others

    def lora_stored_bytes(self, adapter: str = "default") -> int:
        """Bytes of the tensors of a float32 LoRA adapter of the same rank on the same layers."""
        self.check_adapter_exists(adapter)
        return stored.lora_bytes(self, adapter)

    def check_adapter_exists(self, adapter: str) -> None:
        """Raise `ConfigError` if no adapter has this name."""
        if adapter not in self.peft_config:
            there = ", ".join(map(repr, self.peft_config))
            raise ConfigError(f"no adapter is called {adapter!r}; there are {there}.")

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
        state_dict = {key.removeprefix(formats.COMPILED): t for key, t in state_dict.items()}
        result = gathered(saving.logits_and_bank(state_dict, adapter_name))
        if config.save_only_topk_weights:
            result = formats.packed(result, config.topk)
        result.update(cls._get_learnable_bias_state_dict(model, state_dict, config))
        return result

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        key = key.removeprefix(formats.COMPILED)
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
        full = checked_state_dict(model, config, adapter_name, state_dict)
        ours = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, full)
        return cut_alike(ours, dict(model.named_parameters(remove_duplicate=False)))

    def complete_folder(self, config: VBLoRAConfig, folder: Path) -> VBLoRAConfig:
        """Bring a folder in which PEFT just stored an adapter into its final form.

        Called by `config.save_pretrained`, see `saving.complete_folder`.
        """
        name = next((name for name, own in self.peft_config.items() if own is config), None)
        if name is None:  # the adapter is deleted
            return config
        layers = adapted_layers(self, name)
        return saving.complete_folder(folder, name, config, layers, self.vblora_vector_bank)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Configs come out of a deepcopy or a pickle without the model that they belong to.
        super().__setstate__(state)
        for config in self.peft_config.values():
            cast(VBLoRAConfig, config).belongs_to(self)
