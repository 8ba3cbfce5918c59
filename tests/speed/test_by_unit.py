"""Passes of units, in one process where they are named by hand: the same as passes of a model.

`tests/tuner/test_sharded.py` has units that FSDP makes.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.cases import CASES, assert_close, scramble
from tests.tuner.test_whole_model import assert_same_gradients, loss_of, plain_gradients
from vblora_lab.speed import by_unit

CASE = CASES["llama"]
TOKENS = CASE.inputs()
LAYERS = 2
KINDS = {"none": (None, LAYERS), "not reentrant": (False, LAYERS), "reentrant": (True, 2 * LAYERS)}


def adapted(units=True, reentrant=None):
    """Adapters on all linear layers, each decoder layer a unit."""
    model = CASE.ours()
    scramble(model)
    if reentrant is not None:
        how = {"use_reentrant": reentrant}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        model.enable_input_require_grads()
    if units:
        name_units(model)
    return model.train()


def name_units(model):
    pool = model.base_model.pool
    pool.units = {name: ".".join(name.split(".")[:3]) for name in pool.layers["default"]}
    assert len(set(pool.units.values())) == LAYERS


@pytest.fixture
def mixed(monkeypatch):
    """How many layers each admixture was for."""
    calls, mix = [], by_unit.mix_moving

    def counted(logits, *args):
        calls.append(len(logits))
        return mix(logits, *args)

    monkeypatch.setattr(by_unit, "mix_moving", counted)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_whole_passes_at_an_admixture_a_unit(kind, mixed):
    reentrant, admixtures = KINDS[kind]
    expected = plain_gradients(adapted(units=False), TOKENS)
    model = adapted(reentrant=reentrant)
    for _ in range(2):
        mixed.clear()
        assert_same_gradients(plain_gradients(model, TOKENS), expected)
        assert mixed == [7] * admixtures


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_checkpointed_may_be_less_than_a_unit(reentrant):
    """The attention and the MLP each, as some training programs do."""
    expected = plain_gradients(adapted(units=False), TOKENS)
    model = adapted()
    model.enable_input_require_grads()
    for layer in model.base_model.model.model.layers:
        run = layer.mlp.forward
        layer.mlp.forward = lambda x, run=run: checkpoint(run, x, use_reentrant=reentrant)
    for _ in range(2):
        assert_same_gradients(plain_gradients(model, TOKENS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_was_called_without_gradients_before_gets_them(kind):
    expected = plain_gradients(adapted(units=False), TOKENS)
    model = adapted(reentrant=KINDS[kind][0])

    def look(attention, _, kwargs):
        with torch.no_grad():
            attention.q_proj(kwargs["hidden_states"])

    for layer in model.base_model.model.model.layers:
        layer.self_attn.register_forward_pre_hook(look, with_kwargs=True)
    assert_same_gradients(plain_gradients(model, TOKENS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_two_passes_add_up_whatever_came_between(kind):
    def both(model):
        model.zero_grad()
        first = loss_of(model, TOKENS)
        with torch.no_grad():
            loss_of(model.eval(), TOKENS[:1])
        second = loss_of(model.train(), TOKENS.flip(0))
        model.generate(TOKENS[:1], max_new_tokens=2)
        (first + 2 * second).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    expected = both(adapted(units=False))
    assert_same_gradients(both(adapted(reentrant=KINDS[kind][0])), expected)


def test_no_pass_sees_what_an_earlier_one_mixed():
    model, whole = adapted().eval(), adapted(units=False).eval()
    for step in range(3):
        for each in (model, whole):
            for name, parameter in each.named_parameters():
                if "vblora_" in name:
                    parameter.data += 0.1 * step * parameter.data.flip(0)
        for gradients in (torch.no_grad, nullcontext):
            with gradients():
                assert_close(CASE.output(model), CASE.output(whole))


def test_under_autocast_the_matrices_are_rounded_and_not_what_they_are_mixed_of(mixed):
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = (plain_gradients(adapted(units), TOKENS) for units in (True, False))
    assert mixed == [7] * LAYERS
    assert_same_gradients(ours, expected, 0.02)


def test_an_adapter_that_is_deleted_is_let_go_of():
    model = adapted(reentrant=True)
    model.add_adapter("other", model.peft_config["default"])
    pool = model.base_model.pool
    assert not pool.units  # there may be more layers than before
    name_units(model)
    loss_of(model, TOKENS)
    key = "default", next(iter(pool.units))
    assert key in pool._kept._units
    model.delete_adapter("default")
    assert key not in pool._kept._units
    model.set_adapter("other")
    assert all(g.norm() > 0 for g in plain_gradients(model, TOKENS).values())
