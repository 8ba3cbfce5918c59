"""Layers that get the same input: which they are, and when they are computed together."""

import gc
import weakref

import pytest
import torch
from torch import nn
from transformers.models.bart.modeling_bart import BartAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoderLayer
from transformers.models.t5.modeling_t5 import T5Attention, T5DenseGatedActDense

from tests.cases import scramble
from vblora_lab.speed import frozen_linear, one_input
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import add_adapter, get_peft_model
from vblora_lab.tuner.siblings import called_alike


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (OPTAttention, [{"q_proj", "k_proj", "v_proj"}]),
        (LlamaAttention, [{"q_proj", "k_proj", "v_proj"}]),
        (LlamaMLP, [{"gate_proj", "up_proj"}]),
        (T5DenseGatedActDense, [{"wi_0", "wi_1"}]),
        # Their queries come from elsewhere than their keys where they look at an encoder.
        (BartAttention, [{"k_proj", "v_proj"}]),
        (T5Attention, [{"k", "v"}]),
        (GPT2Attention, []),  # one of the two, or the other
        (OPTDecoderLayer, []),  # one after the other, though the argument has one name
        (nn.Linear, []),
        (
            type(
                "Unread", (nn.Module,), {"forward": eval("lambda self, x: self.a(x) + self.b(x)")}
            ),
            [],
        ),
    ],
)
def test_what_the_code_of_a_module_says(kind, expected):
    assert [set(names) for names in called_alike(kind)] == expected


class Attention(nn.Module):
    """Three layers that get one input, unless `between` changes it on the way."""

    between = staticmethod(lambda x: None)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(8, size) for size in (8, 4, 12))

    def forward(self, x):
        query = self.query(x)
        self.between(x)
        return torch.cat([query, self.key(x), self.value(x)], dim=-1)


CONFIG = {
    "r": 2,
    "num_vectors": 6,
    "vector_length": 4,
    "target_modules": ["query", "key", "value"],
}


def adapted(kind=Attention, **changes):
    model = get_peft_model(kind(), VBLoRAConfig(**CONFIG | changes))
    scramble(model)
    return model


def x_of(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def one_by_one(model, x):
    """Output and gradients without any layer knowing of another."""
    layers = [m for m in model.modules() if getattr(m, "siblings", ())]
    before = [layer.siblings for layer in layers]
    for layer in layers:
        layer.siblings = ()
    try:
        return outcome(model, x)
    finally:
        for layer, siblings in zip(layers, before, strict=True):
            layer.siblings = siblings


def outcome(model, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = model(x * 1)
    output.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return [output.detach(), x.grad, *grads]


@pytest.fixture
def counted(monkeypatch):
    """How many layers each call of `frozen_linears` had."""
    calls = []

    def spy(x, layers):
        calls.append(len(layers))
        return frozen_linear.frozen_linears(x, layers)

    monkeypatch.setattr(one_input, "frozen_linears", spy)
    return calls


def assert_as_one_by_one(model, x):
    for one, other in zip(outcome(model, x), one_by_one(model, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_they_are_computed_in_one_call(counted):
    model = adapted()
    assert_as_one_by_one(model, x_of(2, 5, 8))
    assert counted == [3]
    with torch.no_grad():
        model(x_of(2, 5, 8))
    assert counted == [3, 3]


def change_in_place(x):
    with torch.no_grad():
        x.mul_(2)


def test_an_input_that_changes_on_the_way(counted):
    """A write in place gives it another version; the other two still have one input."""
    model = adapted(type("Changes", (Attention,), {"between": staticmethod(change_in_place)}))
    x = x_of(3, 8)
    with torch.no_grad():
        got = model(x.clone())
        base = model.get_base_model()
        expected = torch.cat(
            [base.query(x.clone()), base.key(2 * x), base.value(2 * x)], dim=-1
        )  # each by itself, outside of a pass
    torch.testing.assert_close(got, expected)
    assert counted == [3, 3]  # of the first three, two were of no use


def test_what_is_computed_without_gradients_is_not_for_a_call_with_them():
    model = adapted()
    layers, seen = model.get_base_model(), []

    def first(module, args):
        if not seen:
            seen.append(True)
            with torch.no_grad():
                layers.key(args[0])

    layers.query.register_forward_pre_hook(first)
    assert_as_one_by_one(model, x_of(3, 8))
    assert seen


@pytest.mark.parametrize(
    "switch",
    [
        lambda model: model.set_adapter("other"),
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.get_base_model().key.merge(),
    ],
)
def test_an_adapter_that_is_switched_on_the_way(switch):
    model = adapted()
    add_adapter(model, "other", VBLoRAConfig(**CONFIG))
    scramble(model)
    x, layers = x_of(3, 8), model.get_base_model()
    handle = layers.query.register_forward_hook(lambda *_: switch(model))
    with torch.no_grad():
        key = model(x)[..., 8:12]
        handle.remove()
        torch.testing.assert_close(key, layers.key(x))


def test_adapters_of_different_rank_are_apart(counted):
    model = adapted(target_modules=["query", "key"])
    add_adapter(model, "wide", VBLoRAConfig(**CONFIG | {"r": 3, "target_modules": ["value"]}))
    scramble(model)
    model.base_model.set_adapter(["default", "wide"])
    assert_as_one_by_one(model, x_of(3, 8))
    assert counted == [2]


class Forgets(Attention):
    def forward(self, x, all_three=False):
        return self.query(x) if not all_three else [self.query(x), self.key(x), self.value(x)]


def test_what_nobody_takes_goes_with_its_pass():
    model = adapted(Forgets)
    x = x_of(3, 8).requires_grad_()
    y = x * 1
    model(y)
    gone = weakref.ref(y)
    del y
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False])
def test_under_autocast_one_cast_serves_them(dtype, whole, counted, monkeypatch):
    """Of the input; weights in float32 are cast too, as autocast casts those of the base."""
    base = Attention() if whole else Attention().to(dtype)
    model = get_peft_model(base, VBLoRAConfig(**CONFIG))  # logits in float32
    scramble(model)
    casts, layers = [], model.get_base_model()
    cast = one_input.OneInput.cast
    monkeypatch.setattr(one_input.OneInput, "cast", lambda *a: casts.append(cast(*a)) or casts[-1])
    with torch.autocast("cpu", dtype):
        got = model(x_of(3, 8))
        assert counted == [3]
        assert len(casts) == 1
        expected = torch.cat([m(x_of(3, 8)) for m in (layers.query, layers.key, layers.value)], -1)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
