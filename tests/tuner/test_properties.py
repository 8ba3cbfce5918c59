"""What must hold for every model and config, tried on many that nobody would think of.

Models are chains of nn.Linear and Conv1D of drawn sizes and dtypes; configs adapt a drawn part of
the layers. Banks of 255, 256 and 257 vectors lie on both sides of the change of the index type.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from peft.tuners.vblora import VBLoRAModel as StockModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import vblora_lab.tuner.peft as lab
from vblora_lab.convert.export import export_lora
from vblora_lab.inspection.reading import read_selection
from vblora_lab.tuner.config import VBLoRAConfig

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Largest relative difference of two ways to compute the same thing in a dtype.
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}

pytestmark = [
    pytest.mark.filterwarnings("ignore:topk=1"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),  # PEFT corrects it and says so
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias"),
]
tried_on_many = settings(max_examples=25, deadline=None, derandomize=True, database=None)


class Chain(nn.Module):
    """Layers one after the other; `kinds[i]` maps sizes[i] to sizes[i + 1]."""

    def __init__(self, kinds: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(ins, outs) if kind == "linear" else Conv1D(outs, ins)
            for kind, ins, outs in zip(kinds, sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(torch.tanh(x))
        return x


@dataclass(frozen=True)
class Setup:
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype  # of the base model
    half: bool  # leave the adapter in the base's dtype when that is a half-precision one
    logits_std: float
    fields: dict  # of the config

    @property
    def adapter_dtype(self) -> torch.dtype:
        return self.dtype if self.half else torch.promote_types(self.dtype, torch.float32)

    def base(self, dtype: torch.dtype | None = None) -> Chain:
        torch.manual_seed(7)
        model = Chain(self.kinds, self.sizes)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()  # Conv1D starts with biases of zero
        return model.to(dtype or self.dtype)

    def config(self, **changes) -> VBLoRAConfig:
        return VBLoRAConfig(**{**self.fields, **changes})

    def trained(self, get_peft_model=lab.get_peft_model, **changes) -> PeftModel:
        """An adapted model with random numbers in bank, logits and trained biases."""
        config = self.config(**changes)
        model = get_peft_model(self.base(), config, autocast_adapter_dtype=not self.half)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                numbers = torch.randn(parameter.shape, generator=generator)
                scale = self.logits_std if "logits" in name else 1.0
                parameter.data = (numbers * scale).to(parameter.dtype)
        return model.eval()

    @torch.no_grad()
    def output(self, model: nn.Module) -> Tensor:
        x = torch.randn(5, self.sizes[0], generator=torch.Generator().manual_seed(1))
        return model(x.to(next(model.parameters()).dtype)).double()


@st.composite
def setups(draw) -> Setup:
    length = draw(st.integers(1, 4), "vector_length")
    kinds = draw(st.lists(st.sampled_from(["linear", "conv1d"]), min_size=1, max_size=3))
    tiles = draw(st.lists(st.integers(1, 3), min_size=len(kinds) + 1, max_size=len(kinds) + 1))
    num_vectors = draw(st.one_of(st.integers(1, 9), st.sampled_from([255, 256, 257])))
    layers = draw(st.sets(st.integers(0, len(kinds) - 1), min_size=1), "adapted layers")
    fields = {
        "r": draw(st.integers(1, 4)),
        "num_vectors": num_vectors,
        "vector_length": length,
        "topk": draw(st.integers(1, min(num_vectors, 4))),
        "target_modules": [f"layers.{i}" for i in sorted(layers)],
        "bias": draw(st.sampled_from(["none", "all", "vblora_only"])),
    }
    return Setup(
        kinds=tuple(kinds),
        sizes=tuple(count * length for count in tiles),
        dtype=draw(st.sampled_from(DTYPES)),
        half=draw(st.booleans()),
        logits_std=draw(st.sampled_from([0.1, 1.0, 30.0])),  # 30: all but one weight vanish
        fields=fields,
    )


@contextmanager
def folder() -> Iterator[Path]:
    """Anew for each example, as pytest's tmp_path isn't."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 0.0) -> None:
    """Equal but for the rounding of `dtype`, relative to `expected`, or to `scale` if larger."""
    assert found.isfinite().all()
    largest = max(float(expected.norm()), scale)
    assert (found - expected).norm() <= CLOSE[dtype] * largest, (found, expected)


@given(setup=setups(), ours_writes=st.booleans())
@tried_on_many
def test_all_logits_load_either_way(setup, ours_writes):
    """Written here or by PEFT, read here and by PEFT, at any precision: the same output."""
    writer = setup.trained(lab.get_peft_model if ours_writes else peft.get_peft_model)
    with folder() as path:
        writer.save_pretrained(path)
        loaded = {
            load: load(setup.base(), path, autocast_adapter_dtype=not setup.half)
            for load in (lab.from_pretrained, PeftModel.from_pretrained)
        }
    stock, ours = loaded[PeftModel.from_pretrained], loaded[lab.from_pretrained]
    assert isinstance(stock.base_model, StockModel)
    assert isinstance(ours.base_model, lab.VBLoRAModel)
    expected = setup.output(writer)
    for model in (stock, ours):
        assert_near(setup.output(model), expected, setup.dtype)


@given(setup=setups(), ours_writes=st.booleans())
@tried_on_many
def test_the_top_k_load_either_way_where_peft_can(setup, ours_writes):
    """The same for the compact format, at the one precision and the logits that PEFT can load."""
    setup = Setup(**{**vars(setup), "dtype": torch.float32, "logits_std": min(setup.logits_std, 1)})
    get_peft_model = lab.get_peft_model if ours_writes else peft.get_peft_model
    writer = setup.trained(get_peft_model, save_only_topk_weights=True)
    with folder() as path:
        writer.save_pretrained(path)
        stock = PeftModel.from_pretrained(setup.base(), path)
        ours = lab.from_pretrained(setup.base(), path)
    for model in (stock, ours):
        # A last weight is stored as what the others leave of 1, and read as its logarithm.
        assert_near(setup.output(model), setup.output(writer), torch.float32)


@given(setup=setups(), only_topk=st.booleans())
@tried_on_many
def test_the_bytes_foretold_are_those_of_the_file(setup, only_topk):
    model = setup.trained(save_only_topk_weights=only_topk)
    with folder() as path:
        with lab.using():
            model.save_pretrained(path)
        tensors = load_file(path / "adapter_model.safetensors")
    assert model.stored_bytes() == sum(tensor.nbytes for tensor in tensors.values())


@given(setup=setups(), loaded_dtype=st.sampled_from(DTYPES), loaded_half=st.booleans())
@tried_on_many
def test_the_top_k_reload_at_any_precision_with_the_same_choices(setup, loaded_dtype, loaded_half):
    model = setup.trained(save_only_topk_weights=True)
    with folder() as path:
        with lab.using():
            model.save_pretrained(path)
        loaded = lab.from_pretrained(
            setup.base(loaded_dtype), path, autocast_adapter_dtype=not loaded_half
        )
    before, after = read_selection(model), read_selection(loaded)
    assert np.array_equal(np.sort(before.indices), np.sort(after.indices))
    # A Selection holds float32; a half-precision adapter computes its weights in half precision.
    dtypes = [torch.float32, setup.adapter_dtype, *([loaded_dtype] if loaded_half else [])]
    tolerance = max(CLOSE[dtype] for dtype in dtypes)
    np.testing.assert_allclose(after.dense(), before.dense(), rtol=0, atol=tolerance)
    assert setup.output(loaded).isfinite().all()


@given(setup=setups(), times=st.integers(1, 2))
@tried_on_many
def test_unmerging_restores_every_bit_and_merging_changes_no_output(setup, times):
    model = setup.trained()
    weights = [layer.base_weight() for layer in lab_layers(model)]
    before = [bits(weight) for weight in weights]
    expected = setup.output(model)
    # Rounding is relative to what is added up, base output and update, which may cancel.
    with model.disable_adapter():
        scale = float(setup.output(model).norm())
    for _ in range(times):
        model.merge_adapter()
        assert not all(map(torch.equal, map(bits, weights), before))
        assert_near(setup.output(model), expected, setup.dtype, scale)
        model.unmerge_adapter()
        assert all(map(torch.equal, map(bits, weights), before))
    assert torch.equal(setup.output(model), expected)


def lab_layers(model: PeftModel) -> list:
    return [m for m in model.modules() if isinstance(m, lab.VBLoRAModel.tuner_layer_cls)]


def bits(weight: Tensor) -> Tensor:
    """Numbers as integers, which tell -0 from 0 and one NaN from another."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return weight.detach().clone().view(integers[weight.element_size()])


@given(setup=setups())
@tried_on_many
def test_an_exported_lora_gives_the_same_output_in_peft(setup):
    """With the adapter in float32 or finer, in which A and B are written."""
    setup = Setup(**{**vars(setup), "half": False})
    model = setup.trained()
    with folder() as path:
        export_lora(model, path / "lora")
        lora = PeftModel.from_pretrained(setup.base(), path / "lora")
    assert_near(setup.output(lora), setup.output(model), setup.dtype)
