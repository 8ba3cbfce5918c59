"""Bases in 4 and 8 bits (bitsandbytes): they train, merge and unmerge like their float weights.

The reference is the same adapter on nn.Linear layers that hold the dequantised weights. A weight in
bits is all that differs then, so outputs and gradients agree up to how bitsandbytes rounds.
"""

import copy
import importlib
import pickle
import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

import vblora_lab.tuner.peft as lab
from tests.cases import assert_close, scramble
from vblora_lab.bases import share_weights
from vblora_lab.errors import MergeError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import VBLoRALayer

# `make test` runs these by themselves, with bitsandbytes in a folder that nothing else sees.
bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed: no 4 and 8 bits")

SIZE = 64  # bitsandbytes cuts weights into blocks of 64 values
FIELDS = {"r": 2, "num_vectors": 10, "vector_length": 16, "topk": 3, "init_vector_bank_bound": 0.1}
CONFIG = {**FIELDS, "target_modules": ["first", "second"]}

KINDS = {
    "nf4": lambda: bnb.nn.Linear4bit(SIZE, SIZE, compute_dtype=torch.float32, quant_type="nf4"),
    "fp4, not nested": lambda: bnb.nn.Linear4bit(
        SIZE, SIZE, compute_dtype=torch.float32, quant_type="fp4", compress_statistics=False
    ),
    "nf4 in bfloat16": lambda: bnb.nn.Linear4bit(
        SIZE,
        SIZE,
        compute_dtype=torch.float32,
        quant_type="nf4",
        quant_storage=torch.bfloat16,
    ),
    "int8": lambda: bnb.nn.Linear8bitLt(SIZE, SIZE, has_fp16_weights=False),
}
kinds = pytest.mark.parametrize("kind", KINDS)


class TwoLinear(nn.Module):
    def __init__(self, make=lambda: nn.Linear(SIZE, SIZE)) -> None:
        super().__init__()
        self.first, self.second = make(), make()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def quantised_base(kind):
    torch.manual_seed(7)
    plain = TwoLinear()
    base = TwoLinear(KINDS[kind])
    base.load_state_dict(plain.state_dict())
    return base.to("cpu")  # this is when bitsandbytes quantises


def dequantised(layer):
    """The weight by what the layer computes: its answer to each unit vector, without the bias."""
    training = layer.training
    layer.train()  # the exact path: no repacking, no rounding of the input
    with torch.no_grad():
        weight = (layer(torch.eye(SIZE)) - layer.bias).T.clone()
    layer.train(training)
    return weight


def plain_twin(base):
    twin = TwoLinear()
    for name in ("first", "second"):
        layer = getattr(base, name)
        with torch.no_grad():
            getattr(twin, name).weight.copy_(dequantised(layer))
            getattr(twin, name).bias.copy_(layer.bias)
    return twin


def adapted(base):
    model = lab.get_peft_model(base, VBLoRAConfig(**CONFIG))
    scramble(model)
    with torch.no_grad():
        model.vblora_vector_bank["default"].mul_(0.3)
    return model


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, VBLoRALayer)]


def stored(layer):
    """Every tensor that a quantised layer stores, by name, as a state dict has them."""
    return {name: t.clone() for name, t in copy.deepcopy(layer).state_dict().items()}


def as_bytes(tensor):
    """Packed bits may read as NaN in the dtype that holds them."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(as_bytes(found[name]), as_bytes(tensor)), name


def inputs():
    return torch.randn(5, SIZE, generator=torch.Generator().manual_seed(1))


# --- training


@kinds
def test_it_learns_as_on_the_dequantised_weight(kind):
    base = quantised_base(kind)
    models = [adapted(plain_twin(base)).train(), adapted(base).train()]
    gradients, outputs = [], []
    for model in models:
        output = model(inputs())
        output.pow(2).mean().backward()
        outputs.append(output.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert_close(outputs[1], outputs[0], relative=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 5  # two logits for each layer, and one bank
    for name, gradient in gradients[0].items():
        assert gradient.norm() > 0
        assert_close(gradients[1][name], gradient, relative=1e-4)
    status = models[1].get_model_status()
    assert status.quantization_backend == ("bnb 8bit" if kind == "int8" else "bnb 4bit")
    assert models[1].base_model.model.first.vblora_logits_A["default"].shape == (2, 4, 10)


@kinds
def test_a_few_steps_lower_the_loss(kind):
    model = adapted(quantised_base(kind)).train()
    target = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(2))
    before = {name: stored(layer.base_layer) for name, layer in enumerate(layers_of(model))}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        loss = (model(inputs()) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, layer in enumerate(layers_of(model)):
        assert_same(stored(layer.base_layer), before[name])


# --- merging


@pytest.mark.parametrize("used", [None, "train", "eval"], ids="used in {}".format)
@pytest.mark.parametrize("safe_merge", [False, True])
@kinds
def test_merging_requantises_and_unmerging_gives_back_the_bits(kind, safe_merge, used):
    """Whether a pass came before matters: it may move scales and pack weights anew."""
    model = adapted(quantised_base(kind))
    if used:
        model.train(used == "train")
        with torch.no_grad():
            model(inputs())
    parameters = [layer.base_layer.weight for layer in layers_of(model)]
    packed = [as_bytes(parameter.data).clone() for parameter in parameters]
    before = [stored(layer.base_layer) for layer in layers_of(model)]
    floats = [dequantised(unpacked_twin(layer.base_layer)) for layer in layers_of(model)]
    expected = [
        requantised(kind, weight + layer.get_delta_weight("default").detach(), layer.base_layer)
        for weight, layer in zip(floats, layers_of(model), strict=True)
    ]
    model.merge_adapter(safe_merge=safe_merge)
    for layer, twin in zip(layers_of(model), expected, strict=True):
        assert type(layer.base_layer) is type(twin)
        assert_close(dequantised(layer.base_layer), dequantised(twin), relative=0.02)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    model.unmerge_adapter()
    for number, layer in enumerate(layers_of(model)):
        assert layer.base_layer.weight is parameters[number]
        assert torch.equal(as_bytes(layer.base_layer.weight.data), packed[number])
        assert_same(stored(layer.base_layer), before[number])


def unpacked_twin(layer):
    twin = copy.deepcopy(layer)
    twin.state_dict()  # makes bitsandbytes undo the packing of a pass in eval mode
    return twin


def requantised(kind, weight, like):
    """What quantising this weight from scratch gives."""
    fresh = KINDS[kind]()
    fresh.load_state_dict({"weight": weight, "bias": like.bias.detach()})
    return fresh.to("cpu")


@kinds
def test_merging_keeps_the_output_up_to_the_rounding_of_the_bits(kind):
    model = adapted(quantised_base(kind)).train()
    x = inputs()
    with torch.no_grad():
        output = model(x)
        base = model.base_model.model
        with model.disable_adapter():
            plain = base(x)
        model.merge_adapter()
        merged = model(x)
        with model.disable_adapter():  # unmerges
            assert torch.equal(base(x), plain)
    assert (output - plain).norm() > 0.3 * plain.norm()
    assert_close(merged, output, relative=0.02 if kind == "int8" else 0.2)


@kinds
def test_merge_and_unload_gives_a_quantised_base(kind):
    model = adapted(quantised_base(kind)).train()
    x = inputs()
    with torch.no_grad():
        model.merge_adapter()
        merged = model(x)
        model.unmerge_adapter()
        plain = model.merge_and_unload(safe_merge=True)
        assert type(plain.first) is type(KINDS[kind]())
        assert_close(plain(x), merged)
    assert layers_of(lab.get_peft_model(plain, VBLoRAConfig(**CONFIG)))


@kinds
def test_a_failed_safe_merge_leaves_the_bits(kind):
    model = adapted(quantised_base(kind))
    layers_of(model)[1].vblora_logits_B["default"].data.fill_(float("nan"))
    before = [stored(layer.base_layer) for layer in layers_of(model)]
    with pytest.raises(MergeError, match=r"second.*NaN"):
        model.merge_adapter(safe_merge=True)
    for layer, tensors in zip(layers_of(model), before, strict=True):
        assert not layer.merged
        assert_same(stored(layer.base_layer), tensors)


def test_a_sum_that_8_bits_cannot_hold_is_refused():
    """bitsandbytes cuts 8 bits from float16: more than 65504 would come out as infinite."""
    model = adapted(quantised_base("int8"))
    model.vblora_vector_bank["default"].data.mul_(1e4)
    with pytest.raises(MergeError, match=r"first.*infinite"):
        model.merge_adapter(safe_merge=True)


@kinds
@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
def test_copies_work_and_can_be_unmerged(kind, merged):
    model = adapted(quantised_base(kind)).train()
    with torch.no_grad():
        before = model(inputs())
        if merged:
            model.merge_adapter()
        output = model(inputs())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(inputs()), output)
            if merged:
                twin.unmerge_adapter()
            assert torch.equal(twin(inputs()), before)
        assert torch.equal(model(inputs()), output)  # and leave the first as it was


@kinds
def test_files_load_onto_a_quantised_base(kind, tmp_path):
    model = adapted(quantised_base(kind)).train()
    model.save_pretrained(tmp_path)
    loaded = lab.from_pretrained(quantised_base(kind), tmp_path).train()
    with torch.no_grad():
        assert torch.equal(loaded(inputs()), model(inputs()))


def test_a_kind_that_cannot_be_written_back_is_told():
    model = adapted(TwoLinear())
    layer = model.base_model.model.second.base_layer
    for dtype in (torch.int8, torch.float8_e4m3fn):
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(MergeError, match=rf"second.*{dtype}.*bitsandbytes"):
            model.merge_adapter()
        assert not layers_of(model)[0].merged


def test_a_weight_that_waits_to_be_quantised_is_told():
    for kind in ("nf4", "int8"):
        model = adapted(TwoLinear(KINDS[kind]))
        with pytest.raises(MergeError, match=r"first.*hasn't quantised.*float32"):
            model.merge_adapter()


# --- PEFT


@kinds
def test_peft_still_cannot_merge_into_quantised_weights(kind):
    model = peft.get_peft_model(quantised_base(kind), peft.VBLoRAConfig(**CONFIG))
    with warnings.catch_warnings(), pytest.raises(RuntimeError):
        warnings.simplefilter("ignore")
        model.merge_adapter()


def test_peft_back_end_still_misreads_a_packed_weight():
    """What `vblora_lab.tuner.quantised.dequantised` undoes first; only some CPUs pack."""
    layer = quantised_base("nf4").first.eval()
    expected = dequantised(layer)
    with torch.no_grad():
        layer(inputs())
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("bitsandbytes doesn't pack 4-bit weights on this CPU (no AVX512-BF16)")
    from peft.utils.quantization_utils import resolve_quantization_backend

    weight = resolve_quantization_backend(layer).get_base_weight(layer).float()
    assert (weight - expected).norm() > 0.1 * expected.norm()


@kinds
def test_models_that_share_a_base_in_bits_compute_the_same(kind):
    base = quantised_base(kind).train()
    first, second = share_weights(base), share_weights(base)
    for model in (first, base, second, share_weights(base)):
        assert torch.equal(model(inputs()), base(inputs()))
        same = model.first.weight.data_ptr() == base.first.weight.data_ptr()
        assert same == (model is base or kind != "int8")  # 8 bits are copied
    adapted(second)
    assert not layers_of(base) and torch.equal(first(inputs()), base(inputs()))


def test_a_benchmark_s_row_in_four_bits(monkeypatch):
    """All methods train on one base, and the floor has the bytes that its weights are stored in."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    rows, large, peers = map(importlib.import_module, ("speed_rows", "speed_large", "speed_peers"))
    size = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 50}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(rows.LLAMA_SIZES, "tiny", size | heads)
    row = rows.Row("tiny", 1, 8, "llama-qv", r=2, num_vectors=8, vector_length=16, nf4=True)
    plain = rows.base_model("tiny")
    base = peers.in_four_bits(copy.deepcopy(plain))
    record = large.large_row(base, row, list(rows.METHODS), 4)
    assert record["row"] == "tiny-1x8-llama-qv-nf4"
    assert all(value > 0 for value in record["milliseconds"].values())
    floor, of_plain = record["floor"], large.floor(plain, row)
    for name in ("teraflops_base", "teraflops_attention", "teraflops_adapter"):
        assert floor[name] == of_plain[name]
    # By hand: half a byte for a weight, and for each 64 of them a byte, the scale; the scales have
    # one of 4 bytes for each 256, in each of the weights. The head has its 4 bytes a weight.
    sizes = 2 * [64 * 64] + 2 * [64 * 32] + 2 * [64 * 96] + [64 * 96]
    stored = [n // 2 + n // 64 + 4 for n in sizes]
    read = 2 * (3 * sum(stored) - stored[-1]) + 2 * 4 * 64 * 50
    assert floor["gigabytes_weights"] == pytest.approx(read / 1e9, rel=1e-5)
