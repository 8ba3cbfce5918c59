"""VBLoRALayer and Linear: a linear layer whose low-rank update comes from the vector bank.

The layer computes base_layer(x) + B A dropout(x). A and B aren't stored: they are mixed from the
layer's own logits and the shared bank in every forward pass (see `admixture`).

Attribute and parameter names are PEFT's, so that PEFT's code saves and loads these layers too:

    vblora_logits_A[adapter]     (r, in_features / vector_length, num_vectors)
    vblora_logits_B[adapter]     (out_features / vector_length, r, num_vectors)
    vblora_vector_bank[adapter]  (num_vectors, vector_length), the same object in every layer
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from vblora_lab.admixture import low_rank_matrices
from vblora_lab.config import VBLoRAConfig
from vblora_lab.errors import CheckpointError, MergeError, TargetError

LinearLayer = nn.Linear | Conv1D
NO_ADAPTER = "__base__"  # PEFT's name for "no adapter" in a batch of mixed adapters


def in_out_features(module: nn.Module) -> tuple[int, int]:
    """Input and output size of an nn.Linear or a transformers Conv1D.

    Raises:
        TargetError: the module is of another kind.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):  # Conv1D is a linear layer that stores its weight (in, out)
        in_features, out_features = module.weight.shape
        return in_features, out_features
    raise TargetError(
        f"a module of type {type(module).__name__} can't be adapted: only torch.nn.Linear and "
        "transformers Conv1D can."
    )


class VBLoRALayer(nn.Module, BaseTunerLayer):
    """What any VB-LoRA layer holds: its logits per adapter, and the bank it shares."""

    adapter_layer_names = ("vblora_logits_A", "vblora_logits_B", "vblora_vector_bank")
    other_param_names = ("r", "topk", "vblora_dropout", "logits_are_complete")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = in_out_features(self.get_base_layer())
        self.r: dict[str, int] = {}
        self.topk: dict[str, int] = {}
        self.vblora_dropout = nn.ModuleDict()
        self.vblora_logits_A = nn.ParameterDict()
        self.vblora_logits_B = nn.ParameterDict()
        # False once logits were loaded that only know their top k (see _load_from_state_dict).
        self.logits_are_complete: dict[str, bool] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._weight_before_merge: Tensor | None = None

    def base_weight(self) -> nn.Parameter:
        """The weight that is adapted: (out, in), or (in, out) in a Conv1D."""
        return cast(nn.Parameter, self.get_base_layer().weight)

    def update_layer(
        self,
        adapter_name: str,
        vblora_vector_bank: nn.ParameterDict,
        config: VBLoRAConfig,
        inference_mode: bool = False,
    ) -> None:
        """Give this layer the logits of one more adapter, drawn from a normal distribution.

        Args:
            adapter_name: name of the adapter.
            vblora_vector_bank: all banks of the model, by adapter; kept, not copied.
            config: of the adapter.
            inference_mode: leave the active adapter frozen.

        Raises:
            TargetError: vector_length doesn't divide the layer's input and output size.
        """
        for side, size in (("in", self.in_features), ("out", self.out_features)):
            if size % config.vector_length:
                raise TargetError(
                    f"{side}_features={size} isn't a multiple of vector_length="
                    f"{config.vector_length}."
                )
        r = config.r
        in_tiles = self.in_features // config.vector_length
        out_tiles = self.out_features // config.vector_length
        logits_A = torch.empty(r, in_tiles, config.num_vectors)
        logits_B = torch.empty(out_tiles, r, config.num_vectors)
        for logits in (logits_A, logits_B):
            nn.init.normal_(logits, std=config.init_logits_std)

        self.r[adapter_name] = r
        self.topk[adapter_name] = config.topk
        p = config.vblora_dropout
        dropout = nn.Dropout(p) if p > 0 else nn.Identity()
        self.vblora_dropout[adapter_name] = dropout.train(self.training)
        self.vblora_logits_A[adapter_name] = nn.Parameter(logits_A)
        self.vblora_logits_B[adapter_name] = nn.Parameter(logits_B)
        self.logits_are_complete[adapter_name] = True
        self.vblora_vector_bank = vblora_vector_bank
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move one adapter to the base layer's device, in the adapter's own dtype.

        (PEFT's version also casts to the base layer's dtype, which would round float32 logits that
        were just loaded to half precision.)
        """
        device = device or self.base_weight().device
        for name in self.adapter_layer_names:
            parameters = getattr(self, name, {})
            parameter = parameters.get(adapter_name)
            if parameter is not None and "meta" not in (parameter.device.type, device.type):
                parameter.data = parameter.data.to(device)


class Linear(VBLoRALayer):
    """VB-LoRA around an nn.Linear or a transformers Conv1D.

    Args:
        base_layer: the frozen layer that is adapted.
        vblora_vector_bank: all banks of the model, by adapter.
        adapter_name: the first adapter of this layer, made active.
        config: of that adapter.

    Raises:
        TargetError: base_layer is of another kind, or vector_length doesn't divide its sizes.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        vblora_vector_bank: nn.ParameterDict,
        adapter_name: str,
        config: VBLoRAConfig,
    ) -> None:
        super().__init__(base_layer)
        # Conv1D stores its weight (in, out): the update is transposed before it is merged.
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, vblora_vector_bank, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """base_layer(x) + the sum over active adapters of B A dropout(x).

        Args:
            x: (..., in_features).
            adapter_names: (keyword) one adapter name, or "__base__", per sample of a mixed batch.

        Returns:
            (..., out_features) in the dtype of the base layer's output.

        Raises:
            CheckpointError: in training, logits of which only the top k were stored.
        """
        adapter_names = kwargs.pop("adapter_names", None)
        if self.disable_adapters and self.merged:
            self.unmerge()
        base_output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return base_output
        if adapter_names is not None:
            return self._forward_mixed_batch(x, base_output, adapter_names)
        output = base_output
        for adapter in self.active_adapters:
            if adapter in self.vblora_logits_A:
                output = output + self._update(x, adapter)
        return output.to(base_output.dtype)

    def _forward_mixed_batch(self, x: Tensor, output: Tensor, adapter_names: list[str]) -> Tensor:
        output = output.clone()
        for adapter in dict.fromkeys(adapter_names):
            if adapter in self.vblora_logits_A:
                rows = [i for i, name in enumerate(adapter_names) if name == adapter]
                output[rows] = (output[rows] + self._update(x[rows], adapter)).to(output.dtype)
        return output

    def _update(self, x: Tensor, adapter: str) -> Tensor:
        """B A dropout(x), with A and B mixed now."""
        A, B = self._low_rank_matrices(adapter)
        device = x.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            x = self._cast_input_dtype(x, A.dtype)  # autocast would cast it itself
        return F.linear(F.linear(self.vblora_dropout[adapter](x), A), B)

    def _low_rank_matrices(
        self, adapter: str, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """A (r, in_features) and B (out_features, r), mixed in `dtype` if given."""
        logits_A, logits_B = self.vblora_logits_A[adapter], self.vblora_logits_B[adapter]
        if not self.logits_are_complete[adapter]:
            self._refuse_to_train(adapter)
        # The one bank may lie on another device when the model is spread over several.
        bank = self.vblora_vector_bank[adapter].to(logits_A.device)
        if dtype is not None:
            logits_A, logits_B, bank = logits_A.to(dtype), logits_B.to(dtype), bank.to(dtype)
        return low_rank_matrices(logits_A, logits_B, bank, self.topk[adapter])

    def _refuse_to_train(self, adapter: str) -> None:
        learns = self.vblora_logits_A[adapter].requires_grad and torch.is_grad_enabled()
        if self.training and learns:
            raise CheckpointError(
                f"adapter {adapter!r} can't be trained: its file stores only the top "
                f"{self.topk[adapter]} logits of each sub-vector (save_only_topk_weights=True), so "
                "another choice could never be learned. Train from a file with all logits, or "
                "call model.eval() to use this one."
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Logits rebuilt from a top-k file are -inf where nothing was stored. Looking here, once per
        # load and whoever loads, spares a look (and a wait for the device) per forward pass.
        for adapter in self.vblora_logits_A:
            logits = state_dict.get(f"{prefix}vblora_logits_A.{adapter}")
            if logits is not None and logits.device.type != "meta":
                self.logits_are_complete[adapter] = not bool(logits[0, 0].isinf().any())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update of one adapter in the shape of the base weight, in float32 or finer.

        Returns:
            B @ A (out_features, in_features), or its transpose for a Conv1D.
        """
        # Half precision would lose digits twice: in the product, and in the sum with the weight.
        dtype = torch.promote_types(self.vblora_logits_A[adapter].dtype, torch.float32)
        A, B = self._low_rank_matrices(adapter, dtype)
        delta = B @ A
        return delta.T if self.fan_in_fan_out else delta

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight, so that the layer costs no more than the base layer.

        The old weight is kept, so that `unmerge` gives it back bit for bit, whatever becomes of
        the logits meanwhile. The sum is rounded to the weight's dtype once.

        Args:
            safe_merge: refuse a weight that isn't finite.
            adapter_names: which adapters; the active ones if not given.

        Raises:
            MergeError: with safe_merge, the merged weight has NaN or infinite entries; the layer
                is left as it was. Also for a base weight that isn't floating point (quantised).
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.topk]
        if not names:
            return
        weight = self.base_weight()
        merged = self.merged_weight(names, safe_merge)
        if not self.merged:
            self._weight_before_merge = weight.data
        weight.data = merged
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def merged_weight(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> Tensor:
        """The weight that merging would give, in the base weight's shape and dtype.

        Takes the adapters that aren't merged yet out of `adapter_names`, or of the active ones.

        Raises:
            MergeError: see `merge`.
        """
        weight = self.base_weight()
        if not weight.is_floating_point():
            raise MergeError(f"can't merge into a quantised weight ({weight.dtype}).")
        wanted = self.active_adapters if adapter_names is None else adapter_names
        names = [name for name in wanted if name in self.topk and name not in self.merged_adapters]
        merged = weight.data
        for name in names:
            merged = merged + self.get_delta_weight(name).to(weight.device)
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise MergeError(
                f"merging {', '.join(map(repr, names))} gives a weight with NaN or infinite "
                "entries; the adapter's training probably diverged. Nothing was merged."
            )
        return merged

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base layer the very weight it had before the first merge."""
        if self._weight_before_merge is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.base_weight()
        weight.data = self._weight_before_merge.to(weight.device, weight.dtype)
        self._weight_before_merge = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Yes: the update is a low-rank sum, so PEFT's convert_to_lora can turn it into LoRA."""
        return True

    def __repr__(self) -> str:
        return "vblora." + super().__repr__()
