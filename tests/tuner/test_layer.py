"""Merging, several adapters, dtypes, and what a PEFT user expects of a layer."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import convert_to_lora
from torch import nn

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_close, assert_unchanged, scramble, state_of
from vblora_lab.errors import CheckpointError, ConfigError, TargetError
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import Linear, VBLoRALayer
from vblora_lab.tuner.wrapped import device_of


def with_two_adapters(case):
    model = case.ours()
    second = {**case.config, "num_vectors": 6, "vector_length": 2, "topk": 2}
    model.add_adapter("other", VBLoRAConfig(**second))
    scramble(model)
    return model


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, VBLoRALayer)]


def base_weights(model):
    return [layer.base_weight().detach().clone() for layer in layers_of(model)]


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


# --- merging


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_keeps_the_output_and_unmerging_the_bits(case, safe_merge):
    model = case.ours()
    scramble(model)
    with torch.no_grad():
        output, weights = case.output(model), base_weights(model)
        model.merge_adapter(safe_merge=safe_merge)
        assert all(layer.merged for layer in layers_of(model))
        torch.testing.assert_close(case.output(model), output, rtol=1e-3, atol=1e-3)
        for parameter in model.parameters():  # whatever happens to the logits meanwhile
            if parameter.requires_grad:
                parameter.add_(1.0)
        model.unmerge_adapter()
    assert not any(layer.merged for layer in layers_of(model))
    for layer, weight in zip(layers_of(model), weights, strict=True):
        assert torch.equal(layer.base_weight(), weight)


def test_merge_and_unload_gives_a_plain_model(case):
    model = case.ours()
    scramble(model)
    with torch.no_grad():
        output = case.output(model)
        plain = model.merge_and_unload(safe_merge=True)
        assert layers_of(plain) == []
        assert not hasattr(plain, "peft_config")
        torch.testing.assert_close(case.output(plain), output, rtol=1e-3, atol=1e-3)
        again = lab.get_peft_model(plain, VBLoRAConfig(**case.config))  # and adapts again
    assert layers_of(again)


def test_unload_gives_the_base_back(case):
    base = case.base()
    weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    ids = {name: id(module) for name, module in base.named_modules()}
    back = lab.get_peft_model(base, VBLoRAConfig(**case.config)).unload()
    assert back is base
    assert {name: id(module) for name, module in back.named_modules()} == ids
    assert all(torch.equal(p, weights[name]) for name, p in back.named_parameters())


@pytest.mark.filterwarnings("ignore:Already following adapters were merged")
def test_several_adapters_merge_together(opt_case):
    model = with_two_adapters(opt_case)
    model.base_model.set_adapter(["default", "other"])
    with torch.no_grad():
        output, weights = opt_case.output(model), base_weights(model)
        model.merge_adapter(["default"])
        model.merge_adapter(["other"])
        torch.testing.assert_close(opt_case.output(model), output, rtol=1e-3, atol=1e-3)
        model.unmerge_adapter()
    assert all(map(torch.equal, base_weights(model), weights))


def test_half_precision_weights_are_rounded_once():
    base = nn.Sequential(nn.Linear(8, 8).bfloat16())
    fields = {"r": 2, "num_vectors": 10, "vector_length": 4, "target_modules": ["0"]}
    model = lab.get_peft_model(base, VBLoRAConfig(**fields), autocast_adapter_dtype=False)
    scramble(model)
    layer = layers_of(model)[0]
    layer.double()
    exact = layer.get_delta_weight("default") + layer.base_weight()
    layer.bfloat16()
    weight = layer.base_weight().detach().clone()
    assert layer.vblora_logits_A["default"].dtype == torch.bfloat16
    assert layer.get_delta_weight("default").dtype == torch.float32
    model.merge_adapter()
    step = torch.finfo(torch.bfloat16).eps / 2  # the most that one rounding changes
    assert ((layer.base_weight() - exact).abs() <= 1.01 * step * exact.abs()).all()
    model.unmerge_adapter()
    assert torch.equal(layer.base_weight(), weight)


# --- several adapters, disabled adapters


def test_active_adapters_add_up():
    case = CASES["linear"]
    model = with_two_adapters(case)
    layer = model.base_model.model.first
    x = torch.randn(5, 8)
    base = layer.base_layer(x)
    updates = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        updates[name] = layer(x) - base
        expected = x @ layer.get_delta_weight(name).T
        torch.testing.assert_close(updates[name], expected, rtol=1e-4, atol=1e-4)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(
        layer(x), base + updates["default"] + updates["other"], rtol=1e-4, atol=1e-4
    )


def test_a_half_precision_input_stays_whole_for_each_adapter():
    """x isn't cast in place of itself: the second adapter reads what the first one read."""
    base = nn.Sequential(nn.Linear(8, 8, dtype=torch.float64))
    fields = {"r": 2, "num_vectors": 10, "vector_length": 4, "target_modules": ["0"]}
    model = lab.get_peft_model(base, VBLoRAConfig(**fields))
    model.add_adapter("other", VBLoRAConfig(**fields))
    scramble(model)
    layer = layers_of(model)[0]
    for dictionary in (layer.vblora_logits_A, layer.vblora_logits_B, layer.vblora_vector_bank):
        dictionary["default"].data = dictionary["default"].data.half()
        dictionary["other"].data = dictionary["other"].data.double()
    model.base_model.set_adapter(["default", "other"])
    x = torch.randn(5, 8, dtype=torch.float64)
    second = x @ layer.get_delta_weight("other").T
    first = (x.half() @ layer.get_delta_weight("default").half().T).double()
    expected = layer.base_layer(x) + first + second
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)
    model.set_adapter("other")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + second, rtol=1e-12, atol=1e-12)


def test_disabled_adapters_give_the_base_output(case):
    model = case.ours()
    scramble(model)
    expected = case.output(case.base())
    assert not torch.allclose(case.output(model), expected)
    with model.disable_adapter():
        assert torch.equal(case.output(model), expected)
    model.merge_adapter()
    with model.disable_adapter():  # takes the merge back first
        assert torch.equal(case.output(model), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_active_adapter_is_trained(dtype):
    case = CASES["opt"]
    model = lab.get_peft_model(case.base().to(dtype), VBLoRAConfig(**case.config))
    assert trained(model)
    assert all(name.endswith(".default") for name in trained(model))
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.add_adapter("other", VBLoRAConfig(**{**case.config, "target_modules": ["k_proj", "fc1"]}))
    assert all(p.requires_grad is flag for p, flag in flags)
    assert all(name.endswith(".default") for name in trained(model))
    model.set_adapter("other")
    assert trained(model)
    assert all(name.endswith(".other") for name in trained(model))


def test_the_bank_is_drawn_once_per_adapter_and_shared(opt_case):
    model = with_two_adapters(opt_case)
    banks = {name: bank.detach().clone() for name, bank in model.vblora_vector_bank.items()}
    assert banks["default"].shape == (10, 4)
    assert banks["other"].shape == (6, 2)
    assert all(layer.vblora_vector_bank is model.vblora_vector_bank for layer in layers_of(model))
    model.add_adapter("third", VBLoRAConfig(**opt_case.config))
    for name, bank in banks.items():
        assert torch.equal(model.vblora_vector_bank[name], bank)


def test_the_start_is_drawn_as_the_config_says(opt_case):
    model = opt_case.ours(num_vectors=500, init_vector_bank_bound=0.3, init_logits_std=2.0)
    bank = model.vblora_vector_bank["default"]
    assert bank.abs().max() <= 0.3
    assert bank.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.1)
    logits = layers_of(model)[0].vblora_logits_A["default"]
    assert logits.std().item() == pytest.approx(2.0, rel=0.1)


def test_biases_are_trained_as_asked(opt_case):
    adapted = set(opt_case.ours().base_model.targeted_module_names)
    for bias, expected in (("none", 0), ("vblora_only", len(adapted)), ("all", None)):
        model = opt_case.ours(bias=bias)
        biases = {name for name in trained(model) if name.endswith("bias")}
        every = {name for name, _ in model.named_parameters() if name.endswith("bias")}
        assert len(biases) == (len(every) if expected is None else expected)
    with pytest.raises(ConfigError, match="bias"):
        model.add_adapter("other", VBLoRAConfig(**opt_case.config, bias="all"))
    assert list(model.peft_config) == ["default"]


# --- batches with an adapter per sample


def test_a_batch_of_mixed_adapters(opt_case):
    model = with_two_adapters(opt_case).eval()
    names = ["other", "__base__", "default", "other"]
    mixed = opt_case.output(model, batch=4, adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                alone = opt_case.output(model, batch=4)
        else:
            model.set_adapter(name)
            alone = opt_case.output(model, batch=4)
        torch.testing.assert_close(mixed[row], alone[row], rtol=1e-4, atol=1e-4)
    tokens = opt_case.inputs(2)
    model.set_adapter("default")
    expected = model.generate(tokens, num_beams=2, max_new_tokens=4, do_sample=False)
    mixed = model.generate(
        tokens, num_beams=2, max_new_tokens=4, do_sample=False, adapter_names=["default"] * 2
    )
    assert torch.equal(mixed, expected)


def test_a_wrong_mixed_batch_is_explained(opt_case):
    model = with_two_adapters(opt_case)
    with pytest.raises(ConfigError, match=r"'third'.*'default', 'other'"):
        opt_case.output(model.eval(), adapter_names=["third"] * 3)
    with pytest.raises(ConfigError, match="2 names for a batch of 3"):
        opt_case.output(model, adapter_names=["default"] * 2)
    with pytest.raises(ConfigError, match="eval"):
        opt_case.output(model.train(), adapter_names=["default"] * 3)
    model.eval().merge_adapter()
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        opt_case.output(model, adapter_names=["default"] * 3)


# --- dtypes and devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_has_a_float32_adapter(opt_case, dtype):
    base = opt_case.base().to(dtype)
    model = lab.get_peft_model(base, VBLoRAConfig(**opt_case.config))
    scramble(model)
    layer = model.base_model.model.model.decoder.layers[0].fc1
    assert layer.vblora_logits_A["default"].dtype == torch.float32
    assert layer.vblora_vector_bank["default"].dtype == torch.float32
    output = opt_case.output(model)
    assert output.dtype == dtype
    output.float().pow(2).mean().backward()
    assert layer.vblora_logits_A["default"].grad.norm() > 0
    x = torch.randn(6, 16, dtype=dtype)
    exact = x.float() @ layer.get_delta_weight("default").T + layer.base_layer(x).float()
    torch.testing.assert_close(layer(x).float(), exact, rtol=0.02, atol=0.02)


def test_a_frozen_adapter_stays_frozen_on_a_half_precision_base(opt_case):
    config = VBLoRAConfig(**opt_case.config, inference_mode=True)
    assert trained(lab.get_peft_model(opt_case.base().bfloat16(), config)) == set()


def test_autocast(opt_case):
    model = opt_case.ours()
    scramble(model)
    layer = layers_of(model)[0]
    x = torch.randn(4, 16)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16  # as the base layer alone would give
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)


def test_a_double_base_has_a_double_adapter(opt_case):
    model = lab.get_peft_model(opt_case.base().double(), VBLoRAConfig(**opt_case.config))
    assert model.vblora_vector_bank["default"].dtype == torch.float64
    assert opt_case.output(model).dtype == torch.float64


# --- what else a PEFT user does


def test_deepcopy_and_pickle_keep_the_bank_shared(case):
    model = case.ours()
    scramble(model)
    output = case.output(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(case.output(twin), output)
        bank = twin.vblora_vector_bank["default"]
        assert bank is not model.vblora_vector_bank["default"]
        assert all(layer.vblora_vector_bank["default"] is bank for layer in layers_of(twin))


def test_a_dropout_follows_the_mode_of_the_model(opt_case):
    model = opt_case.ours(vblora_dropout=0.5)  # the base is in eval mode
    assert torch.equal(opt_case.output(model), opt_case.output(model))
    model.add_adapter("other", VBLoRAConfig(**opt_case.config, vblora_dropout=0.5))
    model.set_adapter("other")
    assert torch.equal(opt_case.output(model), opt_case.output(model))
    model.train()
    assert not torch.equal(opt_case.output(model), opt_case.output(model))


def test_it_converts_to_lora(opt_case):
    model = opt_case.ours()
    scramble(model)
    config, state_dict = convert_to_lora(model, rank=2)
    name = "model.decoder.layers.0.fc1"
    A, B = (state_dict[f"base_model.model.{name}.lora_{m}.weight"] for m in "AB")
    delta = model.get_base_model().get_submodule(name).get_delta_weight("default")
    scaling = config.lora_alpha / config.r
    torch.testing.assert_close(scaling * B @ A, delta, rtol=1e-3, atol=1e-3)


def test_training_from_the_top_k_alone_is_refused(opt_case, tmp_path):
    opt_case.ours(save_only_topk_weights=True).save_pretrained(tmp_path)
    model = lab.from_pretrained(opt_case.base(), tmp_path)
    opt_case.output(model.train())  # frozen: nothing to refuse
    model.set_requires_grad("default")
    with pytest.raises(CheckpointError, match=r"'default' .* only the top 3"):
        opt_case.output(model)
    with torch.no_grad():
        opt_case.output(model)
    opt_case.output(model.eval())
    model.load_state_dict(opt_case.ours().state_dict())  # all logits: now it can
    opt_case.output(model.train())


def test_a_layer_alone_says_what_it_cannot_adapt():
    config = VBLoRAConfig(num_vectors=4, vector_length=4)
    bank = nn.ParameterDict({"default": nn.Parameter(torch.zeros(4, 4))})
    with pytest.raises(TargetError, match="Embedding"):
        Linear(nn.Embedding(4, 4), bank, "default", config)
    with pytest.raises(TargetError, match="out_features=6"):
        Linear(nn.Linear(8, 6), bank, "default", config)


def test_no_wait_for_the_device_in_a_forward_pass(opt_case):
    """Tensors without data can't answer questions: a forward pass that asks one would raise."""
    model = opt_case.ours(vblora_dropout=0.1).train().to("meta")
    loss = model(opt_case.inputs().to("meta")).logits.sum()
    loss.backward()
    assert loss.device.type == "meta"


def test_peft_reports_on_the_layers(opt_case):
    model = with_two_adapters(opt_case)
    status = model.get_model_status()
    assert status.available_adapters == ["default", "other"]
    assert status.active_adapters == ["default"]
    assert (status.requires_grad["default"], status.requires_grad["other"]) == (True, False)
    assert status.num_adapter_layers == len(layers_of(model)) == 8
    trainable, _ = model.get_nb_trainable_parameters()
    vblora, others = model.get_nb_savable_parameters()
    assert (trainable, 0) == (vblora, others)


def test_failed_calls_of_a_model_leave_it(opt_case):
    model = opt_case.ours()
    before = state_of(model)
    with pytest.raises(ConfigError, match=r"'nope'.*'default'"):
        model.stored_bytes("nope")
    assert_unchanged(model, before)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_a_layer_on_its_own_mixes_in_autocast_s_dtype(autocast):
    layer = next(iter(adapted_layers(CASES["linear"].ours()).values()))
    assert {matrix.dtype for matrix in layer._matrices("default", autocast)} == {
        autocast or torch.float32
    }


def test_a_weight_that_is_put_aside_computes_where_its_hook_says():
    """accelerate puts weights on "meta" between passes; others compute where they are."""
    layer = nn.Linear(4, 4, device="meta")
    assert device_of(layer) == torch.device("meta")
    layer._hf_hook = SimpleNamespace(execution_device="cpu")
    assert device_of(layer) == torch.device("cpu")
    there = nn.Linear(4, 4)
    there._hf_hook = SimpleNamespace(execution_device="cuda:7")
    assert device_of(there) == torch.device("cpu")
