"""Merging: the right sum, the old bits back, all layers or none, and no module changed by another.

What PEFT's own tuner does on the same input stands beside each point where it differs.
"""

import signal
import warnings
import weakref

import peft
import pytest
import torch
from torch import nn
from transformers import OPTForCausalLM

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, SMALL, assert_close, assert_unchanged, scramble, state_of
from vblora_lab.errors import ConfigError, MergeError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import Linear, VBLoRALayer
from vblora_lab.tuner.model import VBLoRAModel

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights_of(model):
    """The base weights of adapted layers, ours or PEFT's."""
    return {
        name: module.get_base_layer().weight.detach().clone()
        for name, module in model.named_modules()
        if hasattr(module, "base_layer")
    }


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight), name


def adapted(make, base, **fields):
    """A scrambled adapter on a base; `make` is this package's get_peft_model or PEFT's."""
    config = VBLoRAConfig if make is lab.get_peft_model else peft.VBLoRAConfig
    model = make(base, config(**{**SMALL, **fields}))
    scramble(model)
    return model


# --- the old bits


@pytest.mark.filterwarnings("ignore:Already following", "ignore:All adapters are already merged")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_unmerging_gives_back_every_bit(kind, dtype):
    case = CASES[kind]
    model = lab.get_peft_model(case.base().to(dtype), VBLoRAConfig(**case.config))
    model.add_adapter("other", VBLoRAConfig(**{**case.config, "topk": 2}))
    scramble(model)
    before = weights_of(model)
    model.merge_adapter(["default"])
    model.merge_adapter(["default", "default"])  # once is enough
    once = weights_of(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    model.merge_adapter(["other", "default"])
    assert any(not torch.equal(w, once[name]) for name, w in weights_of(model).items())
    model.unmerge_adapter()
    assert_same_bits(weights_of(model), before)
    model.merge_adapter(["default"])
    model.unmerge_adapter()
    assert_same_bits(weights_of(model), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peft_still_loses_bits_when_unmerging(opt_case, dtype):
    model = peft.get_peft_model(opt_case.base().to(dtype), peft.VBLoRAConfig(**opt_case.config))
    scramble(model)
    before = weights_of(model)
    model.merge_adapter()
    model.unmerge_adapter()
    after = weights_of(model)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


def test_peft_still_unmerges_what_the_logits_are_now(opt_case):
    model = opt_case.stock()
    scramble(model)
    before = weights_of(model)
    model.merge_adapter()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(-1.0)
    model.unmerge_adapter()
    after = weights_of(model)
    assert max((after[name] - weight).abs().max() for name, weight in before.items()) > 0.1


@pytest.mark.parametrize("call", ["merge_and_unload", "unload"])
def test_weights_are_never_there_twice_while_unloading(opt_case, monkeypatch, call):
    """A merged layer holds the old weight; it must go before the next one is merged."""
    model = opt_case.ours()
    scramble(model)
    layers = [weakref.ref(m) for m in model.modules() if isinstance(m, VBLoRALayer)]
    held = []
    replace = VBLoRAModel._replace_module

    def count(self, *args):
        held.append(sum(layer() is not None for layer in layers))
        replace(self, *args)

    monkeypatch.setattr(VBLoRAModel, "_replace_module", count)
    getattr(model, call)()
    assert held == list(range(len(layers), 0, -1))


# --- all layers or none


def break_last_layer(model):
    last = [module for module in model.modules() if hasattr(module, "vblora_logits_B")][-1]
    last.vblora_logits_B["default"].data.fill_(float("nan"))


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_failed_safe_merge_leaves_every_layer(opt_case, call, dtype):
    model = lab.get_peft_model(opt_case.base().to(dtype), VBLoRAConfig(**opt_case.config))
    scramble(model)
    break_last_layer(model)
    before, modules = weights_of(model), [id(module) for module in model.modules()]
    with pytest.raises(MergeError, match=r"layers\.1\.fc2.*NaN"):
        getattr(model, call)(safe_merge=True)
    assert_same_bits(weights_of(model), before)
    assert [id(module) for module in model.modules()] == modules
    assert not any(m.merged for m in model.modules() if isinstance(m, VBLoRALayer))


def test_peft_still_leaves_a_failed_safe_merge_half_done(opt_case):
    model = opt_case.stock()
    scramble(model)
    break_last_layer(model)
    before = weights_of(model)
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    after = weights_of(model)
    changed = [name for name, weight in before.items() if not torch.equal(after[name], weight)]
    assert 0 < len(changed) < len(before)


def test_unknown_adapters_are_not_merged_in_silence(opt_case):
    model = opt_case.ours()
    before = state_of(model)
    for call in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ConfigError, match=r"'nope'.*'default'"):
            call(adapter_names=["default", "nope"])
        with pytest.raises(ConfigError, match="list"):
            call(adapter_names="default")
    assert_unchanged(model, before)


def test_peft_still_ignores_an_unknown_adapter(opt_case):
    model = opt_case.stock()
    before = weights_of(model)
    model.merge_adapter(adapter_names=["nope"])
    assert_same_bits(weights_of(model), before)


# --- weights that several modules use


def tied_opt() -> OPTForCausalLM:
    model = CASES["opt"].base()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    return model


class Siblings(nn.Module):
    """Two linear layers with one weight, and a third by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)
        self.alone = nn.Linear(8, 8)
        self.right.weight = self.left.weight

    def forward(self, x):
        return self.alone(torch.tanh(self.right(torch.tanh(self.left(x)))))


class OneLayerTwice(nn.Module):
    """One linear layer under two names: adapted under the first, bare under the second."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.outer = nn.ModuleList([self.left])


class OneBlockTwice(nn.Module):
    """As in ALBERT: one block in two places, so the adapter is in both."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.blocks = nn.ModuleList([block, block])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


TIED = {
    "head and embedding": (tied_opt, ["lm_head", "fc1"], r"lm_head.*model\.decoder\.embed_tokens"),
    "both targeted": (Siblings, ["left", "right", "alone"], "left.*right"),
    "one targeted": (Siblings, ["right", "alone"], "right.*left"),
    "bare elsewhere": (OneLayerTwice, ["left"], r"left.*outer\.0"),
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Model with `tie_word")
@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("kind", TIED)
def test_a_tied_weight_is_not_merged_into(kind, safe_merge):
    make, targets, names = TIED[kind]
    torch.manual_seed(7)
    model = adapted(lab.get_peft_model, make(), target_modules=targets)
    before = state_of(model)
    for call in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=f"(?s)can't merge into {names}.*untie"):
            call(safe_merge=safe_merge)
    assert_unchanged(model, before)


def test_what_is_not_tied_merges_beside_what_is():
    """Only a layer that would be merged into counts, and a block that is called twice is right."""
    torch.manual_seed(7)
    x = torch.randn(5, 8)
    for make, targets in ((Siblings, ["alone"]), (OneBlockTwice, ["0.0"])):
        model = adapted(lab.get_peft_model, make(), target_modules=targets)
        with torch.no_grad():
            output = model(x)
            model.merge_adapter(safe_merge=True)
            assert_close(model(x), output, relative=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Model with `tie_word")
def test_untying_as_the_message_says_makes_the_merge_right():
    base = tied_opt()
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
    base.config.tie_word_embeddings = False
    model = adapted(lab.get_peft_model, base, target_modules=["lm_head", "fc1"])
    tokens = CASES["opt"].inputs()
    with torch.no_grad():
        output = model(tokens).logits
        merged = model.merge_and_unload()
        assert_close(merged(tokens).logits, output, relative=1e-5)


def test_peft_still_changes_the_embedding_when_it_merges_the_head():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of complications, and goes on
        model = adapted(peft.get_peft_model, tied_opt(), target_modules=["lm_head", "fc1"])
        tokens = CASES["opt"].inputs()
        embedding = model.get_base_model().get_input_embeddings().weight.detach().clone()
        with torch.no_grad():
            output = model(tokens).logits
            model.merge_adapter()
            assert not torch.equal(model.get_base_model().get_input_embeddings().weight, embedding)
            assert (model(tokens).logits - output).norm() > 0.1 * output.norm()


def test_peft_still_merges_two_updates_into_one_weight():
    torch.manual_seed(7)
    model = adapted(peft.get_peft_model, Siblings(), target_modules=["left", "right"])
    x = torch.randn(5, 8)
    with torch.no_grad():
        output = model(x)
        model.merge_adapter(safe_merge=True)
        assert (model(x) - output).norm() > 0.1 * output.norm()


# --- interrupted anywhere


def everything(model):
    """Weights, what is merged and what was set aside, layer by layer."""
    layers = [module for module in model.modules() if isinstance(module, VBLoRALayer)]
    return [
        (la.base_weight().clone(), list(la.merged_adapters), la._weight_before_merge)
        for la in layers
    ]


def same_everything(model, before):
    for (weight, merged, kept), (was, had, old) in zip(everything(model), before, strict=True):
        assert torch.equal(weight, was) and merged == had and kept is old


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("method", ["set_base_weight", "get_delta_weight"])
@pytest.mark.parametrize("merged_before", [False, True])
def test_a_merge_cut_short_is_taken_back(opt_case, monkeypatch, error, method, merged_before):
    model = opt_case.ours()
    model.add_adapter("other", VBLoRAConfig(**opt_case.config))
    scramble(model)
    if merged_before:
        model.merge_adapter()
    before, output = everything(model), opt_case.output(model)
    calls = []
    plain = getattr(Linear, method)

    def cut_short(self, *args):
        calls.append(self)
        if len(calls) == 3:
            raise error
        return plain(self, *args)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(Linear, method, cut_short)
        model.merge_adapter(["other"])
    same_everything(model, before)
    assert torch.equal(opt_case.output(model), output)
    model.merge_adapter(["other"])
    model.unmerge_adapter()
    assert not any(merged for _, merged, _ in everything(model))


def test_an_unmerge_cut_short_is_taken_back(opt_case, monkeypatch):
    model = opt_case.ours()
    scramble(model)
    plain = everything(model)
    model.merge_adapter()
    before = everything(model)
    calls = []
    unmerge = Linear.unmerge

    def cut_short(self):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        unmerge(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Linear, "unmerge", cut_short)
        model.unmerge_adapter()
    same_everything(model, before)
    model.unmerge_adapter()
    same_everything(model, plain)


@pytest.mark.parametrize("call", ["merge_and_unload", "unload"])
def test_ctrl_c_waits_until_a_model_is_unloaded(opt_case, monkeypatch, call):
    """Old weights are given up on the way: a half of it could not be taken back."""
    model = opt_case.ours()
    scramble(model)
    base = model.base_model.model
    expected = (
        opt_case.output(model) if call == "merge_and_unload" else opt_case.output(opt_case.base())
    )
    replace = VBLoRAModel._replace_module

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        replace(self, *args)

    monkeypatch.setattr(VBLoRAModel, "_replace_module", interrupted)
    # A process that was started in the background ignores the signal by default.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            getattr(model, call)()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not any(isinstance(module, VBLoRALayer) for module in base.modules())
    assert_close(opt_case.output(base), expected, 1e-5)


def test_a_merged_weight_is_looked_at_only_if_asked(opt_case):
    model = opt_case.ours()
    break_last_layer(model)
    broken = [module for module in model.modules() if isinstance(module, VBLoRALayer)][-1]
    assert broken.merged_weight().isnan().any()
    with pytest.raises(MergeError, match="NaN or infinite"):
        broken.merged_weight(safe_merge=True)
