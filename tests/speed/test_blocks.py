"""Whatever ends a call, well or not, nothing of it is used afterwards."""

import threading
from contextlib import nullcontext

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.cases import assert_close, scramble
from vblora_lab.speed import blocks
from vblora_lab.speed.mixing import mix_all
from vblora_lab.tuner.layer import Linear


@pytest.fixture
def model(opt_case):
    model = opt_case.ours()
    scramble(model)
    return model.eval()


@pytest.fixture
def mixed(monkeypatch):
    """How many layers each admixture was for."""
    counts = []
    monkeypatch.setattr(blocks, "mix_all", lambda *a: counts.append(len(a[0])) or mix_all(*a))
    return counts


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, Linear)]


def bank_of(model):
    return model.base_model.vblora_vector_bank["default"]


def forward(model, tokens):
    return model(tokens).logits


def without_grad(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def generate(model, tokens):
    return model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)


def base_alone(model, tokens):
    return model.get_base_model()(tokens).logits


def tuner(model, tokens):
    return model.base_model(tokens).logits


CALLS = [forward, without_grad, generate, base_alone, tuner]


class StopAt:
    """Raises at the n-th call of a layer, as the stop button of a notebook does anywhere."""

    def __init__(self, layer, error, calls=1):
        self.calls, self.error = calls, error
        self.handle = layer.register_forward_hook(self)

    def __call__(self, *_):
        self.calls -= 1
        if self.calls == 0:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), RuntimeError()], ids=repr)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [1, 3])
def test_a_call_that_is_interrupted_leaves_nothing_behind(model, opt_case, call, error, number):
    if number > 1 and call is not generate:
        pytest.skip("only generate makes several passes")
    tokens = opt_case.inputs(2)
    layer = layers_of(model)[3]
    stop = StopAt(layer, error, number)
    with pytest.raises(type(error)):
        call(model, tokens)
    stop.handle.remove()
    assert model.base_model.pool.blocks == {}
    assert not model.base_model.pool.has_folds
    with torch.no_grad():
        before = opt_case.output(model)
        x = torch.randn(3, layer.in_features)
        alone = layer(x)
        bank_of(model).data.mul_(3)  # leaves no version behind
        assert (opt_case.output(model) - before).norm() > 1e-2 * before.norm()
        assert not torch.allclose(layer(x), alone)


def test_other_threads_go_on_as_before_after_an_interrupt(model, opt_case, mixed):
    stop = StopAt(layers_of(model)[3], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        opt_case.output(model)
    stop.handle.remove()
    mixed.clear()
    thread = threading.Thread(target=lambda: without_grad(model, opt_case.inputs()))
    thread.start()
    thread.join()
    assert mixed == [len(layers_of(model))]  # all layers in one call, in that thread too


def test_two_threads_each_have_passes_of_their_own(model, opt_case, mixed):
    """While one is in the midst of its pass, the other makes a whole one."""
    inside, go_on = threading.Event(), threading.Event()
    answers = []

    def wait(*_):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(30)

    handle = layers_of(model)[2].register_forward_hook(wait)
    expected = without_grad(model, opt_case.inputs())
    mixed.clear()
    thread = threading.Thread(target=lambda: answers.append(without_grad(model, opt_case.inputs())))
    thread.start()
    assert inside.wait(30)
    answers.append(without_grad(model, opt_case.inputs()))
    go_on.set()
    thread.join()
    handle.remove()
    assert mixed == [len(layers_of(model))] * 2
    for answer in answers:
        assert torch.equal(answer, expected)


@pytest.mark.parametrize("call", CALLS)
def test_every_way_to_call_gives_the_same(model, opt_case, call):
    tokens = opt_case.inputs(2)
    first = call(model, tokens)
    again = call(model, tokens)
    assert torch.equal(first, again)
    if call is not generate:
        assert_close(first, forward(model, tokens), 1e-6)


class AtToken(LogitsProcessor):
    def __init__(self, number, change):
        self.number, self.change, self.logits = number, change, []

    def __call__(self, input_ids, scores):
        self.logits.append(scores.clone())
        if len(self.logits) == self.number:
            self.change()
        return scores


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("which", ["bank", "logits", "base"])
def test_a_parameter_that_is_replaced_while_generating_is_seen(model, opt_case, which, number):
    """Another object in its place, as a program does that swaps an adapter's tensors."""
    layer = layers_of(model)[0]

    def replace():
        with torch.no_grad():
            if which == "bank":
                holder, key = model.base_model.vblora_vector_bank, "default"
                holder[key] = torch.nn.Parameter(bank_of(model).flip(0).clone())
            elif which == "logits":
                old = layer.vblora_logits_A["default"]
                layer.vblora_logits_A["default"] = torch.nn.Parameter(-old)
            else:
                base = layer.base_layer
                base.weight = torch.nn.Parameter(-base.weight, requires_grad=False)

    tokens = opt_case.inputs(2)
    seen = AtToken(number, replace)
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": False}
    sequences = model.generate(tokens, logits_processor=LogitsProcessorList([seen]), **options)
    with torch.enable_grad():
        after = model(sequences).logits.detach()
    assert len(seen.logits) > number
    for i in range(number, len(seen.logits)):
        assert_close(seen.logits[i], after[:, tokens.shape[1] + i - 1], 1e-5)


MODES = {
    "inference": lambda: torch.inference_mode(),
    "no_grad": lambda: torch.no_grad(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def gradients_of(model):
    """By name; the model has none afterwards."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", [None, *MODES])
@pytest.mark.parametrize("call", [forward, generate])
def test_a_call_under_any_mixture_of_modes_and_training_after_it(opt_case, first, second, call):
    model = opt_case.ours()
    scramble(model)
    tokens = opt_case.inputs(2)
    model(tokens, labels=tokens).loss.backward()  # in eval mode: without dropout
    expected = gradients_of(model)
    for _ in range(2):
        with MODES[first](), MODES[second]() if second else nullcontext():
            call(model, tokens)
        model(tokens, labels=tokens).loss.backward()
        got = gradients_of(model)
        assert got.keys() == expected.keys()
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, expected[name])


def test_a_model_made_under_inference_mode_generates(opt_case):
    with torch.inference_mode():
        model = opt_case.ours().eval()
        generate(model, opt_case.inputs(2))
        with torch.autocast("cpu", torch.bfloat16):
            generate(model, opt_case.inputs(2))
