"""VBLoRALayer and Linear: a linear layer whose low-rank update comes from the vector bank.

The layer computes base_layer(x) + B A dropout(x). A and B aren't stored: they are mixed from the
layer's own logits and the shared bank in every forward pass (see `admixture`), for all layers of
a model in one call (see `pooled`), or by a layer that is called on its own.

Attribute and parameter names are PEFT's, so that PEFT's code saves and loads these layers too:

    vblora_logits_A[adapter]     (r, in_features / vector_length, num_vectors)
    vblora_logits_B[adapter]     (out_features / vector_length, r, num_vectors)
    vblora_vector_bank[adapter]  (num_vectors, vector_length), the same object in every layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # unlike torch.compiler.disable, imports no compiler
from transformers.pytorch_utils import Conv1D

from vblora_lab.admixture import low_rank_matrices
from vblora_lab.errors import InferenceOnlyError, TargetError
from vblora_lab.speed import kernels
from vblora_lab.speed.blocks import Fold, Place
from vblora_lab.speed.frozen_linear import (
    Adapted,
    frozen_linear,
    frozen_weight,
    frozen_weight_for,
)
from vblora_lab.speed.mixing import Matrices, autocast_dtype
from vblora_lab.speed.one_input import cast_input
from vblora_lab.speed.pool import MatrixPool, Running
from vblora_lab.tuner.banks import VectorBanks
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.of_one import ByAdapter, the_one
from vblora_lab.tuner.sharded import gathered
from vblora_lab.tuner.wrapped import WrappedLinear, device_of

NO_ADAPTER = "__base__"  # PEFT's name for "no adapter" in a batch of mixed adapters


class VBLoRALayer(WrappedLinear):
    """What any VB-LoRA layer holds: its logits per adapter, and the bank it shares."""

    adapter_layer_names = ("vblora_logits_A", "vblora_logits_B", "vblora_vector_bank")
    other_param_names = ("r", "topk", "vblora_dropout", "dropout_p", "logits_are_complete")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.r: dict[str, int] = {}
        self.topk: dict[str, int] = {}
        self.vblora_dropout = nn.ModuleDict()  # of adapters that have one
        self.dropout_p: dict[str, float] = {}
        self.vblora_logits_A = ByAdapter()
        self.vblora_logits_B = ByAdapter()
        # False once logits were loaded that only know their top k (see _load_from_state_dict).
        self.logits_are_complete: dict[str, bool] = {}
        # Where the layers of a model get their matrices from, and this one's name there.
        self.pool, self.name_in_pool = MatrixPool(), ""
        self.siblings: tuple[Linear, ...] = ()  # others with the same input
        self.mixed: dict[str, Matrices] = {}  # by adapter, for compiled code (see `Pass.hand_out`)

    def has_adapter(self, adapter: str) -> bool:
        """Whether this layer carries an adapter."""
        return adapter in self.topk

    def logits(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Those of A (r, in_tiles, num_vectors) and of B (out_tiles, r, num_vectors)."""
        # Asked of all layers in each pass; as attributes and items they take ten times as long.
        modules = cast(dict[str, nn.Module], self._modules)
        A = modules["vblora_logits_A"]._parameters[adapter]
        B = modules["vblora_logits_B"]._parameters[adapter]
        return cast(tuple[nn.Parameter, nn.Parameter], (A, B))

    def bank(self, adapter: str) -> Tensor:
        """(num_vectors, vector_length), on the device of the logits.

        The one bank may lie on another device when the model is spread over several.
        """
        return self.vblora_vector_bank[adapter].to(self.vblora_logits_A[adapter].device)

    def places(self, adapter: str) -> list[Place]:
        """Where the tensors are kept that the matrices and the folded weight are made of."""
        base = self.get_base_layer()._parameters
        logits = (self.vblora_logits_A, self.vblora_logits_B)
        banks = [(each._parameters, adapter) for each in (*logits, self.vblora_vector_bank)]
        # A weight that isn't there as a parameter is of a kind that is never folded.
        return [*banks, *([(base, "weight")] if "weight" in base else [])]

    def _drops(self, adapter: str) -> bool:
        """Whether inputs of an adapter are dropped now, as in training or Monte Carlo dropout."""
        return self.dropout_p[adapter] > 0 and self.vblora_dropout[adapter].training

    def fold(self, matrices: Mapping[str, Matrices]) -> Fold | None:
        """W + B A and the bias, for passes without gradients; None where a call does otherwise.

        Args:
            matrices: of this layer, by adapter, in autocast's dtype if it is on.
        """
        plain = frozen_weight(self.base_layer)
        active = {name for name in self.active_adapters if name in self.topk}
        if plain is None or self._disable_adapters or self.merged:
            return None
        if not active or active != matrices.keys() or any(self._drops(a) for a in active):
            return None
        weight, bias = plain
        dtype = autocast_dtype(weight.device) or weight.dtype
        for A, B_T in matrices.values():
            weight = torch.addmm(weight.to(A.dtype), B_T.t(), A)
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    def update_layer(
        self,
        adapter_name: str,
        vblora_vector_bank: VectorBanks,
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
        self.dropout_p[adapter_name] = p = config.vblora_dropout
        if p > 0:
            self.vblora_dropout[adapter_name] = nn.Dropout(p).train(self.training)
        self.vblora_logits_A[adapter_name] = nn.Parameter(logits_A)
        self.vblora_logits_B[adapter_name] = nn.Parameter(logits_B)
        self.logits_are_complete[adapter_name] = True
        self.vblora_vector_bank = vblora_vector_bank
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters: theirs are trained from now on, except for a bank that is shared."""
        new = the_one()
        if new is None:
            super().set_adapter(adapter_names, inference_mode=inference_mode)
            self.vblora_vector_bank.keep_frozen()
        else:  # while one is added, the others stay as they are
            names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
            self.set_requires_grad(new, new in names and not inference_mode)
            self._active_adapter = names
        self.pool.unfold()

    def enable_adapters(self, enabled: bool) -> None:
        """Turn all adapters on or off; what is trained stays as it is, unlike in PEFT."""
        self._disable_adapters = not enabled
        self.pool.unfold()

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train or freeze adapters, except for a bank that is shared, which stays frozen."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for each in self.adapter_layer_names:  # not by a look at each adapter, as PEFT does
            held = getattr(self, each)
            for name in names:
                if name in held:
                    held[name].requires_grad_(requires_grad)
        self.vblora_vector_bank.keep_frozen(names)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move one adapter to the base layer's device, in the adapter's own dtype.

        (PEFT's version also casts to the base layer's dtype, which would round float32 logits that
        were just loaded to half precision.)
        """
        device = device or device_of(self.get_base_layer())
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
        vblora_vector_bank: VectorBanks,
        adapter_name: str,
        config: VBLoRAConfig,
    ) -> None:
        super().__init__(base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, vblora_vector_bank, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """base_layer(x) + the sum over active adapters of B A dropout(x).

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features) in the dtype of the base layer's output.

        Raises:
            InferenceOnlyError: in training, logits of which only the top k were stored.
        """
        plainly = not args and not kwargs
        if plainly and self.pool.has_folds and (fold := self.pool.folded(self.name_in_pool)):
            return F.linear(x, *fold)
        if self._disable_adapters or self.merged_adapters:
            return self._forward_base_alone(x, *args, **kwargs)
        in_one_call = plainly and kernels.applies() and self.pool.row_batch() is None
        if in_one_call and (output := self._forward_in_one_call(x)) is not None:
            return output
        # Other kinds than these may have reasons of their own to see x as it is.
        autocast = autocast_dtype(x.device)
        if autocast is not None and type(self._modules["base_layer"]) in (nn.Linear, Conv1D):
            x = cast_input(x, autocast, self.pool.inputs(autocast))
        if self.pool.row_batches:
            compiling = torch.compiler.is_compiling()
            by_row = self._forward_by_row_uncompiled if compiling else self._forward_by_row
            if (output := by_row(x, *args, **kwargs)) is not None:
                return output
        return self._forward_in_steps(x, *args, **kwargs)

    def _forward_base_alone(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The adapters are off, or in the base weight already."""
        if self._disable_adapters and self.merged:
            self.unmerge()
        return cast(Tensor, self.base_layer(x, *args, **kwargs))

    def _forward_by_row(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """Each sample has the update of its own adapter, or none.

        None if it is another thread that runs a batch of this kind.
        """
        batch = self.pool.row_batch()
        if batch is None:
            return None
        return batch.add_updates(self.name_in_pool, self.base_layer(x, *args, **kwargs), x)

    # Compiled code can't ask in which thread it runs.
    _forward_by_row_uncompiled = _disable_dynamo(_forward_by_row)

    def _forward_in_one_call(self, x: Tensor) -> Tensor | None:
        """One adapter on a plain frozen layer (see `frozen_linear`); None for any other case.

        Layers with the same input are computed together, when the first of them is called.
        """
        autocast, running = autocast_dtype(x.device), self.pool.running()
        if running is None or running.autocast != autocast:
            running = inputs = None
        else:
            inputs = running.inputs
            if (output := inputs.computed(self.name_in_pool, x)) is not None:
                return output
        dtype = autocast or x.dtype
        layer = self._adapted(dtype, autocast, running)
        cast_x = x if layer is None else cast_input(x, dtype, inputs)
        if layer is None or cast_x.dtype != dtype:  # autocast leaves float64 as it is
            return None
        if inputs is None or not self.siblings or x.is_inference():  # it counts no versions
            return frozen_linear(cast_x, layer)
        together = {self.name_in_pool: layer}
        for sibling in self.siblings:
            other = sibling._adapted(dtype, autocast, running)
            # Not one that is put aside and isn't there yet, nor an adapter of another rank.
            if other and other.weight.device == x.device and other.A.shape == layer.A.shape:
                together[sibling.name_in_pool] = other
        if len(together) == 1:
            return frozen_linear(cast_x, layer)
        return inputs.compute(self.name_in_pool, x, cast_x, together)

    def _adapted(
        self, dtype: torch.dtype, autocast: torch.dtype | None, running: Running | None
    ) -> Adapted | None:
        """This layer, if it is plain and frozen, and has one adapter of a dtype, undropped."""
        adapter = self.only_adapter()
        if self._disable_adapters or self.merged_adapters or not adapter or self._drops(adapter):
            return None
        base = cast(nn.Module, self._modules["base_layer"])
        if (plain := frozen_weight_for(dtype, base, casts=autocast is not None)) is None:
            return None
        mixed = None if running is None else running.get((adapter, self.name_in_pool), autocast)
        A, B_T = self._matrices(adapter, autocast, mixed)
        return Adapted(*plain, A, B_T) if A.dtype == dtype else None

    def _forward_in_steps(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer, whatever it is, and then one update after the other."""
        output = base_output = self.base_layer(x, *args, **kwargs)
        for adapter in self.active_adapters:
            if adapter in self.topk:
                output = self._add_update(output, x, adapter)
        return output.to(base_output.dtype)

    def _add_update(self, output: Tensor, x: Tensor, adapter: str) -> Tensor:
        """output + B A dropout(x), with A and B as they are now."""
        autocast = autocast_dtype(x.device)
        A, B_T = self._matrices(adapter, autocast, self.pool.get(adapter, self, autocast))
        if autocast is None:  # else it casts x itself
            x = self._cast_input_dtype(x, A.dtype)
        dropped = self.vblora_dropout[adapter](x) if self.dropout_p[adapter] > 0 else x
        Ax = F.linear(dropped, A)
        if output.dtype != Ax.dtype:
            return output + Ax @ B_T
        # One call instead of a product and a sum. It takes matrices: one row per token.
        rows = torch.addmm(output.reshape(-1, B_T.shape[1]), Ax.reshape(-1, A.shape[0]), B_T)
        return rows.view(output.shape)

    def _matrices(
        self, adapter: str, autocast: torch.dtype | None, mixed: Matrices | None = None
    ) -> Matrices:
        """A (r, in_features) and the transpose of B, (r, out_features), of a pass or mixed anew."""
        if not self.logits_are_complete[adapter]:
            self._refuse_to_train(adapter)
        return self.pool.mix_alone(adapter, self, autocast) if mixed is None else mixed

    def _refuse_to_train(self, adapter: str) -> None:
        logits = self.vblora_logits_A[adapter], self.vblora_logits_B[adapter]
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in logits)
        if self.training and learns:
            # The first sentences are PEFT's; programs may look for them.
            raise InferenceOnlyError(
                "Found infinity values in VB-LoRA logits. Ensure training was not resumed from a "
                f"`save_only_topk_weights` model. Adapter {adapter!r} was loaded from a file that "
                f"stores only the top {self.topk[adapter]} logits of each sub-vector, so another "
                "choice could never be learned. Train from a file with all logits, or call "
                "model.eval() to use this one."
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Logits rebuilt from a top-k file are -inf where nothing was stored. Looking here, once per
        # load and whoever loads, spares a look (and a wait for the device) per forward pass.
        for adapter in self.vblora_logits_A:
            logits = state_dict.get(f"{prefix}vblora_logits_A.{adapter}")
            # ZeRO-3's state dicts hold empty tensors, whose parts it loads by itself.
            if logits is not None and logits.device.type != "meta" and logits.numel():
                # Whole first: in PyTorch 2.8, indexing a tensor that FSDP cut loses a dimension.
                first = gathered({adapter: logits})[adapter][0, 0]
                self.logits_are_complete[adapter] = not bool(first.isinf().any())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update of one adapter in the shape of the base weight, in float32 or finer.

        Returns:
            B @ A (out_features, in_features), or its transpose for a Conv1D.
        """
        # Half precision would lose digits twice: in the product, and in the sum with the weight.
        dtype = torch.promote_types(self.vblora_logits_A[adapter].dtype, torch.float32)
        logits_A, logits_B = (logits.to(dtype) for logits in self.logits(adapter))
        bank = self.bank(adapter).to(dtype)
        A, B = low_rank_matrices(logits_A, logits_B, bank, self.topk[adapter])
        delta = B @ A
        return delta.T if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight, see `WrappedLinear.merge`."""
        super().merge(safe_merge, adapter_names)
        self.pool.unfold()

    def unmerge(self) -> None:
        """Give the base layer the weight it had before the first merge."""
        super().unmerge()
        self.pool.unfold()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Yes: the update is a low-rank sum, so PEFT's convert_to_lora can turn it into LoRA."""
        return True

    def __repr__(self) -> str:
        return "vblora." + super().__repr__()
